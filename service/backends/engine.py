# pyright: basic
# transformers' tokenizers are typed too loosely for strict mode.
"""The service's side of the engine: texts to tokens and back, adapters held while in use.

Everything slow (tokenizing, compiling a grammar, reading an adapter) happens before the engine's
thread hears of a request, on worker threads.
"""

import asyncio
import codecs
import secrets
from collections.abc import AsyncGenerator, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mcq.prompts import CHAT_TEMPLATE_ARGUMENTS, Prompt
from service.backends.base import (
    AdapterFiles,
    BackendInfo,
    CompletionDelta,
    CompletionRequest,
    ScoreRequest,
)
from service.engine.adapter_files import HostAdapter, read_adapter
from service.engine.compiled_grammars import CompiledGrammars
from service.engine.config import EngineConfig
from service.engine.loading import OpenEngine, Precision, default_config, open_engine
from service.engine.metrics import EngineMetrics
from service.engine.sequence import EngineRequest, Output
from service.errors import AdapterRejectedError, ContextTooLongError

if TYPE_CHECKING:
    from model_registry.bases import BaseModel


class EngineBackend:
    """Our engine behind the `Backend` protocol."""

    def __init__(self, opened: OpenEngine, base: "BaseModel") -> None:
        self._engine, self._store, self._tokens = opened.engine, opened.store, opened.tokens
        self._tokenizer = opened.tokenizer
        self._opened = opened
        self._grammars = CompiledGrammars(opened.compiler, self._encode)
        self._stop_tokens = frozenset(base.end_token_ids)
        self._probed: set[str] = set()
        self._info = BackendInfo(
            kind="engine",
            base_model=base.name,
            fingerprint=base.fingerprint,
            precision=opened.precision,
            max_context_tokens=opened.config.max_context,
            supports_chat=self._tokenizer.chat_template is not None,
        )

    @classmethod
    def open(
        cls,
        base: "BaseModel",
        *,
        precision: Precision = "auto",
        max_adapters: int = 32,
        config: EngineConfig | None = None,
        cache_dir: Path | None = None,
    ) -> Self:
        """Load a base model; takes seconds, so call it on a worker thread.

        Args:
            config: Sizes; chosen for the device and `max_adapters` if left out.
            cache_dir: Where what takes long to make may be kept for the next start.
        """
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            open_engine(
                base.path, precision, config or default_config(max_adapters, device), cache_dir
            ),
            base,
        )

    @property
    def info(self) -> BackendInfo:
        """What is loaded."""
        return self._info

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread still answers."""
        return self._engine.is_healthy

    @property
    def metrics(self) -> EngineMetrics:
        """What the engine has counted."""
        return self._engine.metrics

    @property
    def slots(self) -> int:
        """Sequences that can run at once, each in a KV slot of its own."""
        return self._opened.config.max_sequences

    @property
    def adapter_slots(self) -> int:
        """Adapters that one batch can use."""
        return self._opened.config.max_adapters

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt, the template's included."""
        return len(self._prompt_tokens(prompt))

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        """Read an adapter into host memory and a free slot, and see that it changes something."""
        if await self._hold(adapter) is not None:
            self._store.release(adapter.digest)

    async def unload_adapter(self, digest: str) -> None:
        """Drop an adapter from its slot and from host memory unless it is in use."""
        if await asyncio.wrap_future(self._engine.drop(digest)):
            self._store.drop(digest)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Stream the candidates' texts."""
        tokens = await asyncio.to_thread(self._prompt_tokens, request.prompt)
        self._check_length(len(tokens), request.sampling.max_tokens)
        key, table, forced = None, None, {}
        if request.grammar is not None:
            key, table, forced = await asyncio.to_thread(
                self._grammars.get, request.grammar, request.extra_characters
            )
        sampling = request.sampling
        prepared = EngineRequest(
            prompt=tuple(tokens),
            n=request.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF,
            grammar=key,
            table=table,
            forced=forced,
            stop_tokens=self._stop_tokens,
            deadline=request.deadline,
        )
        texts = [""] * request.n
        decode = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(request.n)]
        prompt_tokens = len(tokens)
        unwanted: set[int] = set()
        async for output in self._run(prepared, request.adapter, unwanted):
            piece = b"".join(self._tokens[token] or b"" for token in output.tokens)
            text = decode[output.index].decode(piece, final=output.finish is not None)
            texts[output.index] += text
            if request.is_wanted is not None and not request.is_wanted(texts[output.index]):
                unwanted.add(output.index)
            yield CompletionDelta(
                output.index,
                text,
                tokens=len(output.tokens),
                finish_reason=output.finish,
                prompt_tokens=prompt_tokens if output.index == 0 else 0,
                logprob=output.logprob,
            )
            if output.index == 0:
                prompt_tokens = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Log-probabilities of choices, each prompt in one forward, all in shared batches."""
        return list(await asyncio.gather(*(self._score(request) for request in requests)))

    async def close(self) -> None:
        """Stop the engine's thread."""
        await asyncio.to_thread(self._engine.close)

    async def _score(self, request: ScoreRequest) -> list[float]:
        text = self._prompt_text(request.prompt) + request.prefix
        special = request.prompt.is_plain
        spelt = self._spell(text, request.choices, special)
        shared = next(
            i for i, column in enumerate(zip(*spelt, strict=False)) if len(set(column)) > 1
        )
        self._check_length(shared, 1)
        prepared = EngineRequest(
            prompt=tuple(spelt[0][:shared]),
            max_tokens=1,
            choices=tuple(tokens[shared] for tokens in spelt),
        )
        async for output in self._run(prepared, request.adapter):
            if output.finish is not None:
                return list(output.scores)
        raise AssertionError("the engine ends every candidate")

    async def _run(
        self,
        request: EngineRequest,
        adapter: AdapterFiles | None,
        unwanted: Set[int] = frozenset(),
    ) -> AsyncGenerator[Output]:
        """Submit a request and hear of it; leaving the generator cancels it.

        Whoever adds to `unwanted` between two outputs has those candidates ended.
        """
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[list[Output]] = asyncio.Queue()
        on_closed = _nothing
        if adapter is not None:
            held = await self._hold(adapter)
            request = replace(request, digest=adapter.digest, adapter=held)
            on_closed = partial(self._store.release, adapter.digest)
        try:
            ticket = self._engine.submit(request, lambda news: _post(loop, inbox, news), on_closed)
        except BaseException:
            on_closed()
            raise
        try:
            left = request.n
            while left:
                for output in await inbox.get():
                    if output.error is not None:
                        raise output.error
                    left -= output.finish is not None
                    yield output
                    if output.index in unwanted and output.finish is None:
                        self._engine.end_candidate(ticket, output.index)
        finally:
            self._engine.cancel(ticket)

    async def _hold(self, adapter: AdapterFiles) -> HostAdapter:
        """The adapter in host memory, held; probed before its first use."""
        held = self._store.hold(adapter.digest)
        if held is None:
            read = partial(
                read_adapter,
                adapter.engine_name,
                adapter.directory,
                self._opened.shapes,
                self._opened.adapter_dtype,
                pinned=self._opened.is_on_gpu,
            )
            reading = asyncio.ensure_future(
                asyncio.to_thread(self._store.put, adapter.digest, read)
            )
            try:
                held = await asyncio.shield(reading)
            except asyncio.CancelledError:
                reading.add_done_callback(partial(self._release_read, adapter.digest))
                raise
        try:
            if adapter.digest not in self._probed:
                changes = await asyncio.wrap_future(self._engine.probe(adapter.digest, held))
                if not await asyncio.to_thread(changes):
                    raise AdapterRejectedError(adapter.engine_name, "it changes nothing")
                self._probed.add(adapter.digest)
        except BaseException:
            self._store.release(adapter.digest)
            raise
        return held

    def _release_read(self, digest: str, reading: asyncio.Future[HostAdapter]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._store.release(digest)

    def _check_length(self, prompt: int, completion: int) -> None:
        limit = self._opened.config.max_context
        if prompt + completion > limit:
            raise ContextTooLongError(prompt, limit - completion)

    def _prompt_text(self, prompt: Prompt) -> str:
        return prompt.to_text(
            lambda turns: self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGUMENTS
            )
        )

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        return self._encode(self._prompt_text(prompt), prompt.is_plain)

    def _spell(self, text: str, choices: Sequence[str], special: bool) -> list[list[int]]:
        """The text with each choice, in tokens.

        The text is long and the choices are many: it is read once, the others only from its last
        line on, unless the tokens of that line depend on what stands before it.
        """
        first = self._encode(text + choices[0], special)
        line = text[text.rfind("\n") + 1 :]
        ends = [self._encode(line + choice) for choice in choices]
        start = len(first) - len(ends[0])
        if start <= 0 or first[start:] != ends[0]:
            return [first, *(self._encode(text + choice, special) for choice in choices[1:])]
        return [first[:start] + end for end in ends]

    def _encode(self, text: str, special: bool = False) -> list[int]:
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]


def _post(
    loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[list[Output]]", news: list[Output]
) -> None:
    loop.call_soon_threadsafe(inbox.put_nowait, news)


def _nothing() -> None:
    pass
