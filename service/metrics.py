"""What Prometheus can read; names begin with `mcq_`, labels are few and bounded.

Adapter labels are names from the registry, never versions, digests or users.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,  # pyright: ignore[reportUnknownVariableType] untyped upstream
)

disable_created_metrics()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """All metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests by route and status", "route", "method", "status"
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From the first byte in to the last byte out", "route"
        )
        self.requests_in_flight = self._gauge("requests_in_flight", "Requests being answered")
        self.time_to_first_question = self._histogram(
            "time_to_first_question_seconds", "From the request to its first question"
        )
        self.questions = self._counter("questions", "Questions returned", "adapter")
        self.rejected = self._counter("completions_rejected", "Completions dropped", "reason")
        self.flaws = self._counter("check_failures", "Flaws in returned questions", "check")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.completion_tokens = self._counter("completion_tokens", "Tokens generated")
        self.adapter_loads = self._counter("adapter_loads", "Loads of adapters", "result")
        self.adapter_load_seconds = self._histogram(
            "adapter_load_seconds", "From the registry into the backend"
        )
        self.adapter_evictions = self._counter("adapter_evictions", "Adapters pushed out")
        self.snapshot_age = self._gauge(
            "registry_snapshot_age_seconds", "Age of what is known of the registry"
        )
        self.ready = self._gauge("ready", "1 while requests can be answered")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mcq_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"mcq_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"mcq_{name}", text, labels, buckets=_SECONDS, registry=self.registry)

    @contextmanager
    def time_adapter_load(self) -> Generator[None]:
        """Count one load by how it ends, and time it."""
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.adapter_loads.labels("failed").inc()
            raise
        self.adapter_loads.labels("loaded").inc()
        self.adapter_load_seconds.observe(time.perf_counter() - start)
