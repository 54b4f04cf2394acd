"""The contract without I/O: request bodies, answers, streams. Both clients stand on it."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from mcq_client.errors import (
    BrokenStreamError,
    McqClientError,
    NoAnswerError,
    ProblemError,
    UnexpectedAnswerError,
    UnreachableError,
    problem_error,
)
from mcq_client.retry import parse_retry_after
from mcq_client.sse import EventDecoder
from mcq_client.types import GenerateOptions, Generation, GenerationStart, Question

AnswerT = TypeVar("AnswerT", bound=BaseModel)

# Generation on a CPU takes its time; a stream is kept alive by a comment every 15 seconds.
DEFAULT_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
JSON_HEADERS = {"Accept": "application/json"}
STREAM_HEADERS = {"Accept": "text/event-stream"}


def generate_body(context: str, options: GenerateOptions) -> dict[str, Any]:
    """The body of `POST /generate`; a misspelt option is a `TypeError`, as in any call."""
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"Unknown option: {', '.join(sorted(unknown))}")
    body: dict[str, Any] = {"context": context, **options}
    if "avoid" in body:
        body["avoid"] = list(body["avoid"])
    return body


def adapter_path(name: str) -> str:
    """The address of one adapter; the name cannot lead elsewhere."""
    return f"/adapters/{quote(name, safe='')}"


@contextmanager
def translated(base_url: httpx.URL | str) -> Generator[None]:
    """Turn httpx's errors into ours; the block may await."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise UnreachableError(f"{base_url} did not answer to a connection in time") from error
    except httpx.TimeoutException as error:
        raise NoAnswerError(f"{base_url} did not answer in time") from error
    except httpx.ConnectError as error:
        raise UnreachableError(f"Cannot connect to {base_url}: {error}") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise UnreachableError(f"{base_url} is not an address: {error}") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise BrokenStreamError(f"The connection to {base_url} broke: {reason}") from error


def problem_of(response: httpx.Response) -> ProblemError:
    """The error that a refused, fully read response stands for: body first, status second."""
    try:
        parsed: object = response.json()
    except ValueError:
        parsed = None
    body = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
    return problem_error(
        body, response.status_code, parse_retry_after(response.headers.get("retry-after"))
    )


def read_answer(response: httpx.Response, kind: type[AnswerT]) -> AnswerT:
    """The model in a fully read response, or the error it stands for."""
    if response.is_error:
        raise problem_of(response)
    return _parsed(response.text, kind, f"{response.request.method} {response.request.url.path}")


def check_stream(response: httpx.Response) -> None:
    """See that an accepted response is a stream of events."""
    content_type = response.headers.get("content-type", "")
    if response.status_code != 200 or not content_type.startswith("text/event-stream"):
        raise UnexpectedAnswerError(
            f"Expected a stream of events, got {response.status_code} {content_type or 'untyped'}"
        )


class StreamReader:
    """Follows one stream of events: `start`, a `question` each, then `done` or `error`."""

    def __init__(self) -> None:
        self.started: GenerationStart | None = None
        self.generation: Generation | None = None
        self._questions: list[Question] = []
        self._decoder = EventDecoder()

    @property
    def has_questions(self) -> bool:
        """Whether anything has been handed out."""
        return bool(self._questions)

    def feed(self, chunk: bytes) -> Iterator[Question]:
        """The questions that this chunk completes."""
        for event in self._decoder.feed(chunk):
            match event.name:
                case "start":
                    self.started = _parsed(event.data, GenerationStart, "The event start")
                case "question":
                    question = _parsed(event.data, Question, "The event question")
                    self._questions.append(question)
                    yield question
                case "done":
                    done = _parsed(event.data, Generation, "The event done")
                    self.generation = done.model_copy(update={"questions": tuple(self._questions)})
                case "error":
                    raise _problem_in(event.data)
                case _:
                    pass  # a later service may say more

    def finish(self) -> None:
        """See that the stream ended where it should."""
        if self.generation is None:
            count = len(self._questions)
            raise BrokenStreamError(f"The stream ended early, after {count} question(s)")


def _parsed(text: str, kind: type[AnswerT], where: str) -> AnswerT:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise UnexpectedAnswerError(
            f"{where}: not an answer of this service ({place}: {first['msg']})"
        ) from error


def _problem_in(data: str) -> McqClientError:
    try:
        parsed: object = json.loads(data)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        return UnexpectedAnswerError("The stream ended with an error that says nothing")
    return problem_error(cast("dict[str, Any]", parsed), 500)
