"""The two clients, one blocking and one for asyncio; what they share is in `wire`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from typing import Any, Self, Unpack

import httpx

from mcq_client import wire
from mcq_client.errors import RetryableError
from mcq_client.retry import RetryPolicy
from mcq_client.types import (
    Adapter,
    AdapterList,
    GenerateOptions,
    Generation,
    GenerationStart,
    Question,
)


class McqClient:
    """A blocking client; safe to share between threads, close it or use it in a `with`.

    Args:
        base_url: Address of the service, such as `http://localhost:8000`.
        headers: Sent with each request, for a gateway that wants a key.
        timeout: Seconds, or an `httpx.Timeout`; the time between two pieces of an answer.
        retry: How patient to be with a busy service.
        transport: Another way to send requests; tests pass one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout = wire.DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        with wire.translated(base_url):
            self._http = httpx.Client(
                base_url=base_url, headers=headers, timeout=timeout, transport=transport
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(self, context: str, **options: Unpack[GenerateOptions]) -> Generation:
        """Ask for questions about a context, and wait for all of them."""
        body = wire.generate_body(context, options)
        return wire.read_answer(self._send("POST", "/generate", json=body), Generation)

    def stream(self, context: str, **options: Unpack[GenerateOptions]) -> "QuestionStream":
        """Ask for questions and take each as soon as it is complete.

        ```python
        with client.stream(context, n=5) as questions:
            for question in questions:
                print(question.question)
        print(questions.generation.usage)
        ```

        Leaving the `with` early tells the service to stop.
        """
        return QuestionStream(self._http, self._retry, wire.generate_body(context, options))

    def adapters(self) -> AdapterList:
        """Everything that can be asked for."""
        return wire.read_answer(self._send("GET", "/adapters"), AdapterList)

    def adapter(self, name: str) -> Adapter:
        """One adapter with its versions and aliases."""
        return wire.read_answer(self._send("GET", wire.adapter_path(name)), Adapter)

    def is_ready(self) -> bool:
        """Whether the service would take a request now; False also when it is unreachable."""
        try:
            return self._http.get("/health/ready").is_success
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, json: Any = None) -> httpx.Response:
        attempts = self._retry.start()
        while True:
            with wire.translated(self._http.base_url):
                response = self._http.request(method, path, json=json, headers=wire.JSON_HEADERS)
            if response.is_success:
                return response
            error = wire.problem_of(response)
            if not isinstance(error, RetryableError):
                raise error
            time.sleep(attempts.wait_after(error))


class QuestionStream:
    """Questions as they come; the request is sent when the first is asked for.

    A busy service is asked again as long as no question has been handed out.
    """

    def __init__(self, http: httpx.Client, retry: RetryPolicy, body: dict[str, Any]) -> None:
        self._reader = wire.StreamReader()
        self._questions = self._read(http, retry, body)

    @property
    def started(self) -> GenerationStart | None:
        """Model, adapter and language, once the service has said them."""
        return self._reader.started

    @property
    def generation(self) -> Generation | None:
        """The whole answer, once the stream is done."""
        return self._reader.generation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._questions.close()

    def __iter__(self) -> Iterator[Question]:
        return self._questions

    def _read(
        self, http: httpx.Client, retry: RetryPolicy, body: dict[str, Any]
    ) -> Generator[Question]:
        attempts = retry.start()
        while True:
            try:
                with (
                    wire.translated(http.base_url),
                    http.stream(
                        "POST", "/generate", json=body, headers=wire.STREAM_HEADERS
                    ) as response,
                ):
                    if response.is_error:
                        response.read()
                        raise wire.problem_of(response)
                    wire.check_stream(response)
                    self._reader = wire.StreamReader()
                    for chunk in response.iter_bytes():
                        yield from self._reader.feed(chunk)
                    self._reader.finish()
                    return
            except RetryableError as error:
                if self._reader.has_questions:
                    raise
                wait_s = attempts.wait_after(error)
            time.sleep(wait_s)


class AsyncMcqClient:
    """The client for asyncio; the same arguments and methods as `McqClient`."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout = wire.DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        with wire.translated(base_url):
            self._http = httpx.AsyncClient(
                base_url=base_url, headers=headers, timeout=timeout, transport=transport
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(self, context: str, **options: Unpack[GenerateOptions]) -> Generation:
        """Ask for questions about a context, and wait for all of them."""
        body = wire.generate_body(context, options)
        return wire.read_answer(await self._send("POST", "/generate", json=body), Generation)

    def stream(self, context: str, **options: Unpack[GenerateOptions]) -> "AsyncQuestionStream":
        """Ask for questions and take each as soon as it is complete; use it in an `async with`."""
        return AsyncQuestionStream(self._http, self._retry, wire.generate_body(context, options))

    async def adapters(self) -> AdapterList:
        """Everything that can be asked for."""
        return wire.read_answer(await self._send("GET", "/adapters"), AdapterList)

    async def adapter(self, name: str) -> Adapter:
        """One adapter with its versions and aliases."""
        return wire.read_answer(await self._send("GET", wire.adapter_path(name)), Adapter)

    async def is_ready(self) -> bool:
        """Whether the service would take a request now; False also when it is unreachable."""
        try:
            return (await self._http.get("/health/ready")).is_success
        except httpx.TransportError:
            return False

    async def _send(self, method: str, path: str, json: Any = None) -> httpx.Response:
        attempts = self._retry.start()
        while True:
            with wire.translated(self._http.base_url):
                response = await self._http.request(
                    method, path, json=json, headers=wire.JSON_HEADERS
                )
            if response.is_success:
                return response
            error = wire.problem_of(response)
            if not isinstance(error, RetryableError):
                raise error
            await asyncio.sleep(attempts.wait_after(error))


class AsyncQuestionStream:
    """Questions as they come, for `async for`; see `QuestionStream`."""

    def __init__(self, http: httpx.AsyncClient, retry: RetryPolicy, body: dict[str, Any]) -> None:
        self._reader = wire.StreamReader()
        self._questions = self._read(http, retry, body)

    @property
    def started(self) -> GenerationStart | None:
        """Model, adapter and language, once the service has said them."""
        return self._reader.started

    @property
    def generation(self) -> Generation | None:
        """The whole answer, once the stream is done."""
        return self._reader.generation

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._questions.aclose()

    def __aiter__(self) -> AsyncIterator[Question]:
        return self._questions

    async def _read(
        self, http: httpx.AsyncClient, retry: RetryPolicy, body: dict[str, Any]
    ) -> AsyncGenerator[Question]:
        attempts = retry.start()
        while True:
            try:
                with wire.translated(http.base_url):
                    async with http.stream(
                        "POST", "/generate", json=body, headers=wire.STREAM_HEADERS
                    ) as response:
                        if response.is_error:
                            await response.aread()
                            raise wire.problem_of(response)
                        wire.check_stream(response)
                        self._reader = wire.StreamReader()
                        async for chunk in response.aiter_bytes():
                            for question in self._reader.feed(chunk):
                                yield question
                        self._reader.finish()
                        return
            except RetryableError as error:
                if self._reader.has_questions:
                    raise
                wait_s = attempts.wait_after(error)
            await asyncio.sleep(wait_s)
