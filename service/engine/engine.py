"""The engine's thread and its loop: take requests, admit, launch a step, read the one before, tell.

All state below belongs to the one engine thread. Other threads only append to the inbox.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from service.engine.adapter_files import HostAdapter
from service.engine.config import EngineConfig
from service.engine.device_state import RowValues
from service.engine.kv_slots import KvSlots
from service.engine.lora_slots import LoraSlots
from service.engine.metrics import EngineMetrics
from service.engine.runner import Drawn, Launched, Part, Runner
from service.engine.scheduler import Scheduler
from service.engine.sequence import EngineRequest, Finish, Listener, Output, Sequence, Ticket
from service.errors import BackendError, BackendFailedError, BackendOverloadedError

_log = logging.getLogger(__name__)
_PAUSE_S = 0.001
_Step = tuple[Launched, list[Sequence]]


class Engine:
    """Continues token sequences; every method may be called from any thread."""

    def __init__(self, runner: Runner, lora: LoraSlots, config: EngineConfig) -> None:
        self._runner, self._lora, self._config = runner, lora, config
        self._kv = KvSlots(config.max_sequences, config.max_context, config.block)
        self._scheduler = Scheduler(config, self._kv)
        self._inbox: deque[Callable[[], None]] = deque()
        self._in_flight: deque[_Step] = deque()
        self._news: dict[Ticket, list[Output]] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._queued = 0  # candidates submitted and not admitted; guarded by the lock
        self._lock = threading.Lock()
        self.metrics = EngineMetrics()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # --- from other threads ---------------------------------------------------------------------

    @property
    def is_healthy(self) -> bool:
        """Whether the thread still answers."""
        return self._thread.is_alive() and self._failure is None and not self._stopping

    def submit(
        self,
        request: EngineRequest,
        listener: Listener,
        on_closed: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """Queue a request; `listener` hears of its candidates on the engine's thread.

        Raises:
            BackendOverloadedError: Too many candidates are waiting.
            BackendFailedError: The engine has stopped.
        """
        ticket = Ticket(request, listener, on_closed, open_candidates=request.n)
        with self._lock:
            if not self.is_healthy:
                raise BackendFailedError
            if self._queued + request.n > self._config.max_queue:
                self.metrics.refused += 1
                raise BackendOverloadedError
            self._queued += request.n
            self._inbox.append(lambda: self._enqueue(ticket))
        self._wake.set()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request before its next step."""
        ticket.cancelled = True
        self._wake.set()

    def end_candidate(self, ticket: Ticket, index: int) -> None:
        """End one candidate of a request before its next step; the others go on."""
        ticket.unwanted.add(index)
        self._wake.set()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run something between two steps on the engine's thread, which owns the device."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            if not self.is_healthy:
                raise BackendFailedError
            self._inbox.append(run)
        self._wake.set()
        return future

    def probe(self, digest: str, adapter: HostAdapter) -> Future[Callable[[], bool]]:
        """Whether the loaded adapter changes what the model says; the caller asks the result on
        its own thread, since streams should not wait for it."""

        def run() -> Callable[[], bool]:
            slot = self._lora.acquire(digest, adapter)
            if slot is None:
                return lambda: True  # all slots are held; its B matrices are known not to be zero
            try:
                return self._runner.probe(slot)
            finally:
                self._lora.release(slot)

        return self.call(run)

    def drop(self, digest: str) -> Future[bool]:
        """Empty an adapter's slot if nobody holds it."""

        def run() -> bool:
            self._kv.forget(digest)
            return self._lora.drop(digest)

        return self.call(run)

    def close(self) -> None:
        """Stop the thread; whoever still waits gets an error."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    # --- the loop -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        except BaseException as error:
            _log.exception("The engine's thread has died")
            self._failure = error
        finally:
            self._end_everyone()

    def _step(self) -> None:
        if self._scheduler.is_idle and not self._in_flight and not self._inbox:
            self._wake.wait()
        self._wake.clear()
        while self._inbox:
            self._inbox.popleft()()
        self._end_expired()
        self._admit()
        launched = [step for step in (self._prefill(), self._decode()) if step]
        self._in_flight.extend(launched)
        if not launched and not self._in_flight and not self._scheduler.is_idle:
            time.sleep(_PAUSE_S)  # everything that is left waits for something outside the engine
        kept = len(launched) if self._config.overlap else 0
        while len(self._in_flight) > kept:
            self._settle(*self._in_flight.popleft())
        self._tell()

    def _enqueue(self, ticket: Ticket) -> None:
        self.metrics.requests += 1
        for index in range(ticket.request.n):
            prompt = list(ticket.request.prompt)
            sequence = Sequence(ticket, index, prompt, len(prompt))
            if ticket.request.table is not None:
                sequence.state = ticket.request.table.automaton.start
                self._force(sequence, 0)
                sequence.prompt_length = len(sequence.tokens)
            self._scheduler.add(sequence)

    def _end_expired(self) -> None:
        now = time.monotonic()
        for sequence in list(self._scheduler.everyone()):
            ticket, deadline = sequence.ticket, sequence.request.deadline
            unwanted = ticket.cancelled or sequence.index in ticket.unwanted
            if unwanted or (deadline is not None and now >= deadline):
                self._end(sequence, "cancelled")

    def _admit(self) -> None:
        copies: list[tuple[int, int, int]] = []
        rows: dict[int, RowValues] = {}
        for sequence, copy in self._scheduler.admit(self._prepare):
            copies.append(copy)
            rows[sequence.slot] = sequence.row_values()
            self._unqueue()
            self.metrics.admit(sequence, reused=copy[2], now=time.monotonic())
        self._runner.copy_prefixes(copies)
        self._runner.state.write(rows)

    def _prepare(self, sequence: Sequence) -> bool:
        """Take a LoRA slot and a grammar; False while all are held."""
        request = sequence.request
        try:
            if request.adapter is not None and sequence.lora is None:
                sequence.lora = self._lora.acquire(request.digest, request.adapter)
                if sequence.lora is None:
                    return False
            if request.grammar is not None and request.table is not None:
                sequence.grammar = self._runner.grammar.acquire(request.grammar, request.table)
                sequence.state += sequence.grammar.offset
        except BackendOverloadedError:
            return False
        except Exception as error:
            self._fail(sequence, error)
            return False
        return True

    def _prefill(self) -> _Step | None:
        chunks = self._scheduler.prefill()
        parts = [
            Part(s.slot, c.start, c.tokens, s.lora, c.is_last, s.request.choices)
            for c in chunks
            for s in (c.sequence,)
        ]
        step = self._launch([c.sequence for c in chunks], parts, self._runner.extend)
        for chunk in chunks if step else ():
            chunk.sequence.computed += len(chunk.tokens)
            chunk.sequence.launched += chunk.is_last
            self._kv.fill(chunk.sequence.slot, chunk.sequence.computed)
            self.metrics.prompt_tokens += len(chunk.tokens)
        return step

    def _decode(self) -> _Step | None:
        config, sequences = self._config, self._scheduler.decoding()
        most = min(config.max_drafts, config.draft_rows // max(1, len(sequences)) - 1)
        parts = [
            Part(
                s.slot, s.computed, s.tokens[s.computed :], s.lora,
                drafts=s.guess(most, config.max_context) if most > 0 else (),
            )
            for s in sequences
        ]  # fmt: skip
        self.metrics.drafts += sum(len(part.drafts) for part in parts)
        step = self._launch(sequences, parts, self._runner.decode)
        for sequence in sequences if step else ():
            sequence.computed += 1
            sequence.launched += 1
        return step

    def _launch(self, sequences: list[Sequence], parts: list[Part], run: Any) -> _Step | None:
        """Launch a step; one that fails ends its own sequences and not the engine."""
        if not parts:
            return None
        sampling = any(s.request.temperature > 0 for s in sequences)
        try:
            return run(parts, sampling=sampling), sequences
        except Exception as error:
            for sequence in sequences:
                self._fail(sequence, error)
            self._runner.recover()
            return None

    def _settle(self, launched: Launched, sequences: list[Sequence]) -> None:
        """Read a step's tokens and see who is finished."""
        try:
            drawn = launched.read()
        except Exception as error:
            for sequence in sequences:
                self._fail(sequence, error)
            self._runner.recover()
            return
        forced: dict[int, RowValues] = {}
        for index, draws in drawn.items():
            sequence = sequences[index]
            sequence.launched -= 1
            if sequence.request.choices and not sequence.is_over:
                sequence.scores = tuple(launched.scores(index))
                self._end(sequence, "stop")
            for number, draw in enumerate(draws):
                if sequence.is_over:
                    break
                if number:  # after a draft that was right, which has its keys already
                    sequence.computed += 1
                    self.metrics.accepted_drafts += 1
                self._take(sequence, draw)
                if self._jump(sequence):  # what was drawn after it may spell the same otherwise
                    forced[sequence.slot] = sequence.row_values()
                    break
        self._runner.state.write(forced)

    def _take(self, sequence: Sequence, drawn: Drawn) -> None:
        """Note a drawn token, which may end the sequence."""
        request, grammar, (token, state, logprob) = sequence.request, sequence.grammar, drawn
        sequence.news_logprob += logprob
        self.metrics.draw(sequence, time.monotonic())
        sequence.generated += 1
        sequence.state = state
        if grammar is None and token in request.stop_tokens:
            self._end(sequence, "stop")
            return
        sequence.tokens.append(token)
        sequence.news.append(token)
        if grammar is not None and state == grammar.accept:
            self._end(sequence, "stop")
        elif (
            sequence.generated >= request.max_tokens
            or len(sequence.tokens) >= self._config.max_context
        ):
            self._end(sequence, "length")

    def _jump(self, sequence: Sequence) -> bool:
        """Append what must follow a drawn token, if anything."""
        grammar = sequence.grammar
        if grammar is None or sequence.is_over or not self._config.jump_forward:
            return False
        return self._force(sequence, grammar.offset)

    def _force(self, sequence: Sequence, offset: int) -> bool:
        """Append the tokens that must follow, if that may be done without asking the model."""
        request = sequence.request
        tokens = request.forced.get(sequence.state - offset, ())
        room = min(
            request.max_tokens - sequence.generated, self._config.max_context - len(sequence.tokens)
        )
        if request.table is None or not tokens or len(tokens) >= room:
            return False
        sequence.state = request.table.follow(sequence.state - offset, tokens) + offset
        sequence.tokens += tokens
        sequence.news += tokens
        sequence.generated += len(tokens)
        return True

    # --- endings --------------------------------------------------------------------------------

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        if not isinstance(error, BackendError):
            _log.error("A step failed", exc_info=error)
            is_memory = type(error).__name__ == "OutOfMemoryError"
            error = BackendOverloadedError() if is_memory else BackendFailedError()
        self._end(sequence, None, error)

    def _end(
        self, sequence: Sequence, finish: Finish | None, error: Exception | None = None
    ) -> None:
        """The one place where a sequence gives back what it holds."""
        if sequence.is_over:
            return
        sequence.finish, sequence.error = finish, error
        self._scheduler.remove(sequence)
        if sequence.slot >= 0:
            self._kv.release(sequence.slot, spoiled=error is not None)
        else:
            self._unqueue()
        if sequence.lora is not None:
            self._lora.release(sequence.lora)
        if sequence.grammar is not None:
            self._runner.grammar.release(sequence.grammar)
        self._report(sequence)
        ticket = sequence.ticket
        ticket.open_candidates -= 1
        self.metrics.end(sequence)
        if ticket.open_candidates == 0:
            ticket.on_closed()

    def _report(self, sequence: Sequence) -> None:
        if not sequence.news and not sequence.is_over:
            return
        self._news.setdefault(sequence.ticket, []).append(sequence.take_news())

    def _tell(self) -> None:
        """Tell listeners what is new; one call per request, so that waking them stays cheap."""
        for sequence in self._scheduler.running:
            self._report(sequence)
        metrics = self.metrics  # before anybody hears that something has ended, and asks
        metrics.running = len(self._scheduler.running)
        metrics.waiting = self._scheduler.waiting
        metrics.adapters_in_slots = self._lora.in_use
        metrics.adapter_loads = self._lora.loads
        metrics.adapter_evictions = self._lora.evictions
        news, self._news = self._news, {}
        for ticket, outputs in news.items():
            try:
                ticket.listener(outputs)
            except Exception:  # a caller that has gone away must not stop the others
                _log.exception("A listener failed")
                ticket.cancelled = True

    def _unqueue(self) -> None:
        with self._lock:
            self._queued -= 1

    def _end_everyone(self) -> None:
        with self._lock:
            self._stopping = True
        while self._inbox:
            self._inbox.popleft()()
        for sequence in list(self._scheduler.everyone()):
            self._end(sequence, None, BackendFailedError("The engine has stopped"))
        self._tell()
