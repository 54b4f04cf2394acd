"""What a backend counts, as Prometheus reads it: names begin with `mcq_engine_`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # the echo backend starts without torch
    from service.engine.metrics import EngineMetrics, Histogram

_VERSION = re.compile(r"-v\d+-[0-9a-f]{12}$")
"""What `AdapterFiles.engine_name` has after the name; labels name adapters, not their versions."""


@runtime_checkable
class Measured(Protocol):
    """A backend that runs the engine."""

    @property
    def metrics(self) -> "EngineMetrics":
        """What the engine has counted."""
        ...

    @property
    def slots(self) -> int:
        """Sequences that can run at once, each in a KV slot of its own."""
        ...

    @property
    def adapter_slots(self) -> int:
        """Adapters that one batch can use."""
        ...


class EngineCollector(Collector):
    """Reads the counts at each scrape; labels are few: reasons, and at most fifty adapters."""

    def __init__(self, backend: Measured) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        """All families."""
        metrics = self._backend.metrics
        yield from self._counters(metrics)
        yield from self._gauges(metrics)
        yield _histogram("queue_seconds", "From the request to its slot", metrics.queue_s)
        yield _histogram(
            "first_token_seconds", "From the request to its first token", metrics.first_token_s
        )
        yield _histogram(
            "between_tokens_seconds", "Between a stream's tokens", metrics.between_tokens_s
        )

    def _counters(self, metrics: "EngineMetrics") -> Iterator[Metric]:
        for name, text, value in (
            ("requests", "Requests taken in", metrics.requests),
            ("requests_refused", "Requests refused, the queue being full", metrics.refused),
            ("prompt_tokens", "Prompt tokens computed", metrics.prompt_tokens),
            ("reused_tokens", "Prompt tokens copied instead of computed", metrics.reused_tokens),
            ("drafts", "Tokens guessed ahead and checked", metrics.drafts),
            ("accepted_drafts", "Of them those that were right", metrics.accepted_drafts),
            ("adapter_loads", "Adapters copied into slots", metrics.adapter_loads),
            ("adapter_evictions", "Adapters pushed out of slots", metrics.adapter_evictions),
        ):
            yield CounterMetricFamily(f"mcq_engine_{name}", text, value=value)
        ended = CounterMetricFamily("mcq_engine_sequences", "Sequences ended", labels=["reason"])
        for reason, count in dict(metrics.ended).items():
            ended.add_metric([reason], count)
        yield ended
        tokens = CounterMetricFamily(
            "mcq_engine_tokens", "Tokens generated, those thrown away included", labels=["adapter"]
        )
        by_name = Counter[str]()
        for adapter, count in dict(metrics.tokens_by_adapter).items():
            by_name[_VERSION.sub("", adapter)] += count
        for name, count in by_name.items():
            tokens.add_metric([name], count)
        yield tokens

    def _gauges(self, metrics: "EngineMetrics") -> Iterator[Metric]:
        for name, text, value in (
            ("running", "Sequences in slots", metrics.running),
            ("slots", "Slots, each the KV cache of one sequence", self._backend.slots),
            ("waiting", "Sequences without a slot", metrics.waiting),
            ("adapters_in_slots", "Adapters that a batch can use now", metrics.adapters_in_slots),
            ("adapter_slots", "Adapters that one batch can use", self._backend.adapter_slots),
        ):
            yield GaugeMetricFamily(f"mcq_engine_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: "Histogram") -> Metric:
    buckets: list[tuple[str, float]] = []
    seen = 0
    counts = list(histogram.counts)
    for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), seen))
    return HistogramMetricFamily(
        f"mcq_engine_{name}", text, buckets=buckets, sum_value=histogram.total
    )
