# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""How long an adapter takes to its slot, and how long running streams stand still meanwhile."""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.engine_throughput import Bench
from benchmarks.engine_workload import random_adapter, requests
from service.engine.adapter_files import HostAdapter, read_adapter
from service.engine.sequence import Output

_LOADS = 6
_STREAMS = 64


def measure_loading(bench: Bench, rank: int, note: Callable[[str, float, str], None]) -> None:
    """Note the times of loads, idle first, then under streams."""
    on_gpu = bench.runner.device.type == "cuda"
    adapters = [
        random_adapter(1000 + i, rank, bench.shapes, torch.bfloat16, pinned=on_gpu)
        for i in range(2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        megabytes = write_adapter(adapters[0], directory) / 1e6
        times = [_into_slot(bench, f"host-{i}", adapters[i % 2]) for i in range(_LOADS)]
        note("adapter from host memory to slot", 1000 * statistics.median(times), "ms")
        times = [_from_disk(bench, f"disk-{i}", directory) for i in range(_LOADS)]
        note(f"adapter of {megabytes:.0f} MB from disk, usable", 1000 * times[0], "ms (first)")
        note(f"adapter of {megabytes:.0f} MB from disk, usable", 1000 * _median(times), "ms")
        gaps = _Gaps(bench)
        note("streams, longest gap without loads", 1000 * gaps.longest(0.5), "ms")
        load = [
            lambda i=i: _into_slot(bench, f"host-again-{i}", adapters[i % 2]) for i in range(_LOADS)
        ]
        note("streams, longest gap, from host memory", 1000 * gaps.longest(0.5, load), "ms")
        load = [lambda i=i: _from_disk(bench, f"disk-again-{i}", directory) for i in range(_LOADS)]
        note("streams, longest gap, from disk", 1000 * gaps.longest(0.5, load), "ms")
        gaps.end()


def write_adapter(adapter: HostAdapter, directory: Path) -> int:
    """Write an adapter in PEFT layout; returns the bytes of its weights."""
    tensors = {}
    for name, (a, b) in adapter.modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.t().contiguous()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in adapter.modules}),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return adapter.size


def _median(times: list[float]) -> float:
    return statistics.median(times[1:])


def _into_slot(bench: Bench, digest: str, adapter: HostAdapter) -> float:
    """Seconds of the engine's thread and the device together."""

    def load() -> float:
        _wait(bench)
        started = time.perf_counter()
        slot = bench.lora.acquire(digest, adapter)
        _wait(bench)
        seconds = time.perf_counter() - started
        if slot is not None:
            bench.lora.release(slot)
        return seconds

    return bench.engine.call(load).result()


def _from_disk(bench: Bench, digest: str, directory: Path) -> float:
    """Seconds as a first request spends them: read, check, load, probe."""
    started = time.perf_counter()
    pinned = bench.runner.device.type == "cuda"
    adapter = read_adapter(digest, directory, bench.shapes, torch.bfloat16, pinned=pinned)
    bench.engine.probe(digest, adapter).result()()
    return time.perf_counter() - started


def _wait(bench: Bench) -> None:
    if bench.runner.device.type == "cuda":
        torch.cuda.synchronize()


class _Gaps:
    """Streams that run on, and the times at which each hears of new tokens."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        on_gpu = bench.runner.device.type == "cuda"
        count = _STREAMS if on_gpu else 4
        self._heard: list[list[float]] = [[] for _ in range(count)]
        self._tickets = [
            bench.engine.submit(replace(request, max_tokens=640), self._listener(index))
            for index, request in enumerate(requests(count, 55, []))
        ]
        while not all(len(times) > 2 for times in self._heard):
            time.sleep(0.01)

    def _listener(self, index: int) -> Callable[[list[Output]], None]:
        return lambda _: self._heard[index].append(time.perf_counter())

    def longest(self, seconds: float, loads: list[Callable[[], float]] | None = None) -> float:
        """The longest time that a stream waited for its next token."""
        started = time.perf_counter()
        for load in loads or ():
            load()
            time.sleep(seconds / len(loads or ()))
        time.sleep(max(0.0, started + seconds - time.perf_counter()))
        return max(
            later - earlier
            for times in self._heard
            for earlier, later in itertools.pairwise(times)
            if earlier >= started
        )

    def end(self) -> None:
        """Stop the streams."""
        for ticket in self._tickets:
            self._bench.engine.cancel(ticket)
