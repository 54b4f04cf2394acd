# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""The reference backend: transformers' `generate` and PEFT, one request after another.

Slow and simple: the oracle that the engine is tested against, and the fallback for what the
engine cannot run. Everything that touches the model happens on one thread, so requests for
different adapters cannot meet.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import TypeVar

import torch
from transformers import AutoTokenizer

from mcq.prompts import CHAT_TEMPLATE_ARGUMENTS, Prompt
from model_registry.bases import BaseModel
from service.backends.base import (
    AdapterFiles,
    BackendInfo,
    CompletionDelta,
    CompletionRequest,
    ScoreRequest,
)
from service.backends.reference_generation import Candidate, generate, is_over, read_prompt
from service.backends.reference_grammar import GrammarCompiler
from service.backends.reference_model import ReferenceModel, require_precision
from service.backends.reference_scoring import ScoredPrompt, score_prompts, split_choices
from service.errors import (
    BackendError,
    BackendFailedError,
    BackendOverloadedError,
    ContextTooLongError,
)

_LOG = logging.getLogger(__name__)
_MAX_QUEUE = 64
_MAX_CONTEXT = 8192
"""Attention over a whole prompt takes memory that grows with its square."""

T = TypeVar("T")


class ReferenceBackend:
    """Holds one base model and any number of adapters; see `service.backends.base.Backend`."""

    def __init__(self, base: BaseModel, model: ReferenceModel) -> None:
        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(base.path)
        self._tokenizer_lock = Lock()
        self._ends = base.end_token_ids
        self._grammars = GrammarCompiler(self._tokenizer, model.vocabulary_rows, self._ends)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="reference")
        self._waiting = 0
        self._running: set[Event] = set()  # of each completion: set to stop it
        self._is_closed = False
        self._info = BackendInfo(
            kind="reference",
            base_model=base.name,
            fingerprint=base.fingerprint,
            precision=model.precision,
            max_context_tokens=min(model.max_positions, _MAX_CONTEXT),
            supports_chat=bool(self._tokenizer.chat_template),
        )

    @classmethod
    def open(
        cls, base: BaseModel, precision: str = "auto", device: str | None = None
    ) -> "ReferenceBackend":
        """Load a prepared base model; takes seconds, so not on an event loop."""
        require_precision(precision)
        if not base.end_token_ids:
            raise BackendError(
                f"The base model {base.name} names no end token; add a chat template"
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(base, ReferenceModel.load(base.path, precision, base.end_token_ids, device))

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def is_healthy(self) -> bool:
        return not self._is_closed

    def count_tokens(self, prompt: Prompt) -> int:
        return len(self._encode(prompt))

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        await self._submit(lambda: self._model.load_adapter(adapter))

    async def unload_adapter(self, digest: str) -> None:
        await self._submit(lambda: self._model.unload_adapter(digest))

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        ids = self._encode(request.prompt)
        needed, limit = len(ids) + request.sampling.max_tokens, self._info.max_context_tokens
        if needed > limit:
            raise ContextTooLongError(len(ids), limit - request.sampling.max_tokens)
        if self._waiting >= _MAX_QUEUE:
            raise BackendOverloadedError
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[CompletionDelta | None] = asyncio.Queue()
        cancelled = Event()

        def emit(delta: CompletionDelta | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        job = self._submit(lambda: self._complete(request, ids, cancelled, emit))
        job.add_done_callback(lambda _: deltas.put_nowait(None))
        self._running.add(cancelled)
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            await job
        finally:
            cancelled.set()
            self._running.discard(cancelled)
            job.cancel()  # nothing happens if it is over; it ends at its next token if it runs
            job.add_done_callback(_forget)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        encoded = [
            [self._encode(request.prompt, request.prefix + choice) for choice in request.choices]
            for request in requests
        ]
        asked = [
            split_choices(request.choices, rows)
            for request, rows in zip(requests, encoded, strict=True)
        ]
        for prompt in asked:
            if len(prompt.ids) >= self._info.max_context_tokens:
                raise ContextTooLongError(len(prompt.ids), self._info.max_context_tokens - 1)
        return await self._submit(lambda: self._score([r.adapter for r in requests], asked))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for cancelled in self._running:
            cancelled.set()
        await asyncio.to_thread(self._worker.shutdown, wait=True)  # what waits fails at its turn
        del self._model

    def _complete(
        self,
        request: CompletionRequest,
        ids: list[int],
        cancelled: Event,
        emit: Callable[[CompletionDelta], None],
    ) -> None:
        over = is_over(cancelled, request.deadline)
        if over():  # while it waited
            for index in range(request.n):
                tokens = len(ids) if index == 0 else 0
                emit(CompletionDelta(index, "", finish_reason="cancelled", prompt_tokens=tokens))
            return
        prompt = torch.tensor([ids], device=self._model.device)
        with self._using(request.adapter) as model:
            prefix = read_prompt(model, prompt) if request.n > 1 else None
            for index in range(request.n):
                if index > 0 and over():
                    emit(CompletionDelta(index, "", finish_reason="cancelled"))
                    continue
                grammar = request.grammar and self._grammars.state(
                    request.grammar, request.extra_characters
                )
                candidate = Candidate(
                    index,
                    self._tokenizer,
                    len(ids),
                    request.sampling,
                    grammar or None,
                    self._ends,
                    over,
                    emit,
                )
                generate(model, prompt, prefix, candidate, request.sampling.max_tokens)

    def _score(
        self, adapters: list[AdapterFiles | None], prompts: list[ScoredPrompt]
    ) -> list[list[float]]:
        """All prompts of one adapter together; adapters one after another."""
        groups: dict[AdapterFiles | None, list[int]] = {}
        for place, adapter in enumerate(adapters):
            groups.setdefault(adapter, []).append(place)
        scores: dict[int, list[float]] = {}
        for adapter, places in groups.items():
            with self._using(adapter) as model:
                rows = score_prompts(model, [prompts[place] for place in places])
            scores.update(zip(places, rows, strict=True))
        return [scores[place] for place in range(len(prompts))]

    def _using(self, adapter: AdapterFiles | None):
        if adapter is not None:  # unloaded while the request waited, or never loaded
            self._model.load_adapter(adapter)
        return self._model.using(adapter)

    def _encode(self, prompt: Prompt, more: str = "") -> list[int]:
        with self._tokenizer_lock:  # the event loop counts while the worker scores
            text = prompt.to_text(self._apply_chat_template) + more
            return self._tokenizer(text, add_special_tokens=prompt.is_plain).input_ids

    def _apply_chat_template(self, turns: list) -> str:
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGUMENTS
        )

    def _submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have something done on the one thread, in its turn."""
        if self._is_closed:
            raise BackendFailedError("The backend is closed")
        job = asyncio.wrap_future(self._worker.submit(self._guarded, work))
        self._waiting += 1
        job.add_done_callback(self._leave)
        return job

    def _leave(self, _: asyncio.Future) -> None:
        self._waiting -= 1

    def _guarded(self, work: Callable[[], T]) -> T:
        """What is no error of ours becomes one, with the cause logged."""
        if self._is_closed:
            raise BackendFailedError("The backend is closed")
        try:
            return work()
        except BackendError:
            raise
        except Exception as error:
            _LOG.exception("the model failed")
            raise BackendFailedError from error


def _forget(job: asyncio.Future) -> None:
    """Nobody may be waiting any more: take its error, so that asyncio does not complain."""
    if not job.cancelled():
        job.exception()
