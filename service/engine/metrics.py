"""What the engine counts. Plain numbers, written by the engine's thread and read by any other."""

import bisect
from dataclasses import dataclass, field

from service.engine.sequence import Sequence

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
MAX_ADAPTER_LABELS = 50
"""Adapters counted by name; later ones are counted together, so that labels stay few."""


@dataclass
class Histogram:
    """Cumulated counts by upper bound, as Prometheus wants them."""

    bounds: tuple[float, ...] = _SECONDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class EngineMetrics:
    """Counters, gauges and distributions since the start."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    drafts: int = 0
    """Tokens that were guessed and checked."""
    accepted_drafts: int = 0
    ended: dict[str, int] = field(default_factory=dict[str, int])
    tokens_by_adapter: dict[str, int] = field(default_factory=dict[str, int])
    running: int = 0
    waiting: int = 0
    adapters_in_slots: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    queue_s: Histogram = field(default_factory=Histogram)
    first_token_s: Histogram = field(default_factory=Histogram)
    between_tokens_s: Histogram = field(default_factory=Histogram)

    def admit(self, sequence: Sequence, reused: int, now: float) -> None:
        """A sequence got its slot."""
        self.reused_tokens += reused
        self.queue_s.observe(now - sequence.ticket.submitted)

    def draw(self, sequence: Sequence, now: float) -> None:
        """A token of a sequence has been read."""
        if sequence.last_token is None:
            self.first_token_s.observe(now - sequence.ticket.submitted)
        else:
            self.between_tokens_s.observe(now - sequence.last_token)
        sequence.last_token = now

    def end(self, sequence: Sequence) -> None:
        """A sequence is over."""
        reason = sequence.finish or "failed"
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self.generated_tokens += sequence.generated
        adapter = sequence.request.adapter
        name = "base" if adapter is None else adapter.name
        if name not in self.tokens_by_adapter and len(self.tokens_by_adapter) >= MAX_ADAPTER_LABELS:
            name = "other"
        self.tokens_by_adapter[name] = self.tokens_by_adapter.get(name, 0) + sequence.generated
