"""Who runs next: a queue per adapter, served in turn, and the sequences that have a slot.

Nothing here touches the device; it decides on host data alone and is owned by the engine thread.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.engine.config import EngineConfig
from service.engine.kv_slots import KvSlots
from service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a prompt, or of tokens that the grammar forces."""

    sequence: Sequence
    start: int
    tokens: list[int]
    is_last: bool


class Scheduler:
    """Waiting and running sequences."""

    def __init__(self, config: EngineConfig, kv: KvSlots) -> None:
        self._config, self._kv = config, kv
        self._queues: dict[str, deque[Sequence]] = {}
        self.running: list[Sequence] = []
        self._prefill_since: float | None = None

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return sum(map(len, self._queues.values()))

    @property
    def is_idle(self) -> bool:
        return not self.running and not self._queues

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind the others of its adapter."""
        self._queues.setdefault(sequence.request.digest, deque()).append(sequence)

    def admit(
        self, prepare: Callable[[Sequence], bool]
    ) -> Iterator[tuple[Sequence, tuple[int, int, int]]]:
        """Give slots to waiting sequences, one adapter after the other.

        Args:
            prepare: Takes what else the sequence needs (a LoRA slot, a grammar); False if that has
                to wait.

        Yields:
            The sequence and the rows to copy for it: source slot, its own slot, tokens.
        """
        blocked: set[str] = set()
        while self._kv.free:
            digest = next((d for d in self._queues if d not in blocked), None)
            if digest is None:
                return
            queue = self._queues.pop(digest)  # and to the end: adapters take turns
            self._queues[digest] = queue
            sequence = queue[0]
            reuse = self._kv.find(sequence.tokens, digest)
            if reuse is None or not prepare(sequence):
                blocked.add(
                    digest
                )  # unless that has just ended the sequence, and with it its place
                continue
            queue.popleft()
            if not queue:
                del self._queues[digest]
            sequence.slot = self._kv.take(sequence.tokens, digest, reuse)
            sequence.computed = reuse.tokens
            self.running.append(sequence)
            yield sequence, (reuse.source, sequence.slot, reuse.tokens)

    def prefill(self) -> list[Chunk]:
        """The next chunks of prompts, oldest sequence first, up to the budget of a step."""
        ready = [s for s in self.running if not s.is_over and self._is_prefilling(s)]
        if not ready or self._should_wait(ready):
            return []
        chunks: list[Chunk] = []
        budget = self._config.prefill_tokens
        for sequence in ready:
            start = sequence.computed
            count = min(sequence.pending, budget)
            if count < sequence.pending:
                count -= (start + count) % self._config.block
            if count <= 0:
                break
            tokens = sequence.tokens[start : start + count]
            chunks.append(Chunk(sequence, start, tokens, count == sequence.pending))
            budget -= count
        self._prefill_since = None
        return chunks

    def decoding(self) -> list[Sequence]:
        """Sequences that go on by one token."""
        return [s for s in self.running if not s.is_over and self._is_decoding(s)]

    def _is_prefilling(self, sequence: Sequence) -> bool:
        return sequence.pending > 1 or sequence.computed < sequence.prompt_length

    def _is_decoding(self, sequence: Sequence) -> bool:
        if self._is_prefilling(sequence) or sequence.request.choices:
            return False
        launched = sequence.launched
        return (
            launched + sequence.pending > 0
            and sequence.generated + launched < sequence.request.max_tokens
            and sequence.computed < self._config.max_context
        )

    def _should_wait(self, ready: list[Sequence]) -> bool:
        """Whether a small prefill lets decoding go on until more prompts have come."""
        pending = sum(s.pending for s in ready)
        if pending >= self._config.prefill_tokens // 2 or len(ready) == len(self.running):
            return False
        now = time.monotonic()
        if self._prefill_since is None:
            self._prefill_since = now
        return now - self._prefill_since < self._config.prefill_patience_s

    def drain(self) -> list[Sequence]:
        """Everything, waiting and running, when the engine stops."""
        everything = [s for queue in self._queues.values() for s in queue] + self.running
        self._queues, self.running = {}, []
        return everything

    def everyone(self) -> Iterator[Sequence]:
        """All sequences that are not over."""
        yield from self.running
        for queue in self._queues.values():
            yield from queue

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is over."""
        if sequence.slot >= 0:
            self.running.remove(sequence)
            return
        queue = self._queues.get(sequence.request.digest)
        if queue is not None and sequence in queue:
            queue.remove(sequence)
            if not queue:
                del self._queues[sequence.request.digest]
