# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""One group of `benchmarks.engine_gpu`: opens an engine and measures its cases.

A case that fails or takes too long is reported, and the next one goes on.
"""

import argparse
import json
import signal
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_floor import Floor
from benchmarks.engine_loading import measure_loading
from benchmarks.engine_throughput import Bench, open_bench, run, workload_config
from benchmarks.engine_workload import (
    Structure,
    qwen2_config,
    random_adapter,
    random_model,
    requests,
)
from service.engine.adapter_files import HostAdapter
from service.engine.device_state import POSITION
from service.engine.model import load_weights

CASE_LIMIT_S = 60
_DISTINCT = 4
"""Adapters with weights of their own; further ones have the same weights in rows of their own."""


@dataclass
class Session:
    """A group's engine, and where its figures go."""

    group: str
    size: str
    rank: int
    count: int
    """Requests of a throughput case."""
    out: Path
    weights: Path
    """Where the first group leaves the model for the others to start from."""
    bench: Bench
    adapters: list[HostAdapter]

    def note(self, case: str, value: float, unit: str) -> None:
        """Print a figure and keep it."""
        print(f"{self.group:13} {case:44} {value:12.3f} {unit}", flush=True)
        row = {"group": self.group, "case": case, "value": value, "unit": unit, "at": time.time()}
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rate(self, case: str, work: list) -> float:
        """Tokens per second of some requests at once."""
        value = run(self.bench, work)["tokens_per_s"]
        self.note(case, value, "tok/s")
        return value

    def structured(self, work: list) -> list:
        return [self.bench.structure.constrain(request) for request in work]


def mixed(s: Session, *, repeats: int = 1) -> None:
    """Base, adapters, adapters with structured output, in turn; and what each costs."""
    seen: dict[str, list[float]] = {}

    def measure(case: str, work: list) -> None:
        seen.setdefault(case, []).append(s.rate(case, work))

    run(s.bench, requests(min(s.count, 256), 9, []))
    run(s.bench, requests(min(s.count, 2 * len(s.adapters)), 8, s.adapters))
    for repeat in range(repeats):
        measure("base", requests(s.count, 1 + repeat, []))
        measure("adapters", requests(s.count, 3 + repeat, s.adapters))
        measure("adapters, grammar", s.structured(requests(s.count, 13 + repeat, s.adapters)))
    best = {case: statistics.median(values) for case, values in seen.items()}
    s.note("adapters cost", 100 * (1 - best["adapters"] / best["base"]), "%")
    # A grammar may end an answer early, so that rates with and without it say less than steps do.
    s.note("grammar costs", 100 * (1 - best["adapters, grammar"] / best["adapters"]), "%")


def throughput(s: Session) -> None:
    """The main table, twice."""
    mixed(s, repeats=2)


def alone(s: Session) -> None:
    """One request at a time."""
    for name, adapters in (("base", []), ("adapter", s.adapters)):
        for structured in (False, True):
            rates = []
            for seed in range(4):
                work = requests(1, 40 + seed, adapters)
                work = s.structured(work) if structured else work
                rates.append(run(s.bench, work)["tokens_per_s"])
            case = f"one request, {name}{', grammar' if structured else ''}"
            s.note(case, statistics.median(rates[1:]), "tok/s")


def floor(s: Session) -> None:
    """How near prompts and decode steps come to the least time that the hardware allows."""
    least = Floor(qwen2_config(s.size))
    metrics = s.bench.engine.metrics
    for name, adapters in (("base", []), ("adapters", s.adapters)):
        before = metrics.prompt_tokens
        work = [replace(r, max_tokens=1) for r in requests(s.count, 60 + len(adapters), adapters)]
        seconds = run(s.bench, work)["seconds"]
        tokens = metrics.prompt_tokens - before
        share = least.prefill_s(tokens, 220, s.rank if adapters else 0) / seconds
        s.note(f"prompt tokens, {name}", tokens / seconds, "tok/s")
        s.note(f"prompts, share of the floor, {name}", 100 * share, "%")
    if s.bench.runner.device.type != "cuda":
        return
    s.bench.engine.call(lambda: _decode_steps(s, least)).result()


def _decode_steps(s: Session, least: Floor) -> None:
    """Replays of the largest decode graphs, on rows whose adapters were last in use."""
    runner: Any = s.bench.runner
    rows, context = runner.config.max_sequences, 460
    for with_lora in (False, True):
        graph = runner._decode_graphs.get((rows, with_lora, False))
        if graph is None:
            continue
        runner._slots.copy_(torch.arange(rows, device=runner.device))
        if with_lora:
            each = -(-rows // len(s.adapters))
            table = [
                [start, min(each, rows - start), number * s.rank, s.rank]
                for number, start in enumerate(range(0, rows, each))
            ]
            runner._lora_blocks.zero_()
            runner._lora_blocks[: len(table)] = torch.tensor(table, device=runner.device)
        times = []
        for _ in range(30):
            runner.state.integers[:rows, POSITION] = context
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph[0].replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        milliseconds = statistics.median(times)
        adapters = len(s.adapters) if with_lora else 0
        floor_ms = 1000 * least.decode_s(rows, context, adapters, s.rank)
        name = "adapters" if with_lora else "base"
        s.note(f"decode step of {rows} rows, {name}", milliseconds, "ms")
        s.note(f"decode step, share of the floor, {name}", 100 * floor_ms / milliseconds, "%")
    runner._rows = []  # the device's rows are no longer what the host thinks they are


def loading(s: Session) -> None:
    """An adapter on its way to a slot, and what running streams feel of it."""
    measure_loading(s.bench, s.rank, s.note)


def forms(s: Session) -> None:
    """Each way of multiplying the adapters' A."""
    from benchmarks.engine_forms import measure_forms

    runner = s.bench.runner
    run(s.bench, requests(2 * len(s.adapters), 8, s.adapters))
    s.bench.engine.call(lambda: measure_forms(runner, len(s.adapters), s.rank, s.note)).result()


def kernels(s: Session) -> None:
    """Where a step's time goes."""
    from benchmarks.engine_forms import measure_kernels

    runner = s.bench.runner
    s.bench.engine.call(lambda: measure_kernels(runner, len(s.adapters), s.rank)).result()


def disk(s: Session) -> None:
    """Write the weights for a later start, and time reading them."""
    device = s.bench.runner.device
    random_model(s.size, device).save_pretrained(s.weights)
    started = time.perf_counter()
    load_weights(s.weights, torch.bfloat16, device)
    s.note("weights from disk to device", time.perf_counter() - started, "s")


CASES: dict[str, Callable[[Session], None]] = {
    "throughput": throughput,
    "mixed": mixed,
    "alone": alone,
    "floor": floor,
    "loading": loading,
    "forms": forms,
    "kernels": kernels,
    "disk": disk,
}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after some time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def open_session(args: argparse.Namespace) -> Session:
    on_gpu = torch.cuda.is_available()
    config = workload_config(args.adapters, args.rank, args.requests)
    stored = on_gpu and args.group == "again" and (args.weights / "config.json").exists()
    device = torch.device("cuda" if on_gpu else "cpu")
    model = load_weights(args.weights, torch.bfloat16, device) if stored else None
    # The service captures graphs for sampling too; only starts that are reported pay for them.
    sampling = args.group in ("first", "again")
    bench = open_bench(args.size, config, Structure(), model, sampling=sampling)
    session = Session(
        args.group, args.size, args.rank, args.requests, args.out, args.weights, bench, []
    )
    run(bench, [replace(request, max_tokens=2) for request in requests(1, 77, [])])
    how = "weights from disk" if stored else "random weights"
    session.note(f"start to first tokens, {how}", time.time() - args.started, "s")
    for part, seconds in bench.start_s.items():
        session.note(f"start: {part}", seconds, "s")
    some = [
        random_adapter(i, args.rank, bench.shapes, torch.bfloat16, pinned=on_gpu)
        for i in range(min(args.adapters, _DISTINCT))
    ]
    session.adapters = [
        replace(some[i % len(some)], name=f"random-{i}") for i in range(args.adapters)
    ]
    return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group")
    parser.add_argument("--size", required=True)
    parser.add_argument("--adapters", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--started", type=float, default=time.time())
    parser.add_argument("--around")
    args = parser.parse_args()
    session = open_session(args)

    def around(when: str) -> None:
        if args.around:
            subprocess.run([*args.around.split(), when], check=False)

    around("begin")
    try:
        for case in args.cases:
            try:
                with limited(CASE_LIMIT_S):
                    CASES[case](session)
            except Exception:
                print(f"{args.group}: the case {case} failed", flush=True)
                traceback.print_exc()
    finally:
        around("end")
    if torch.cuda.is_available():
        session.note("peak memory of the device", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    session.bench.engine.close()


if __name__ == "__main__":
    main()
