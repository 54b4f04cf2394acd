# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Throughput of the engine on the common workload, on whatever device there is.

    python -m benchmarks.engine_throughput --size 1.5b --rank 16 --adapters 32

Prints one line per case: base, many adapters, adapters with structured output, one request alone.
Results also go to --out as JSON. `benchmarks.engine_check` says whether the numbers are right.
"""

import argparse
import json
import queue
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.engine_workload import Structure, random_adapter, random_model, requests
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading import CPU, GPU
from service.engine.lora_slots import LoraSlots
from service.engine.model import prepare_model
from service.engine.runner import Runner
from service.engine.sequence import EngineRequest, Output


@dataclass
class Bench:
    """An engine over a random model."""

    engine: Engine
    runner: Runner
    lora: LoraSlots
    structure: Structure
    shapes: dict[str, tuple[int, int]]
    start_s: dict[str, float]


def workload_config(adapters: int, rank: int, requests: int) -> EngineConfig:
    """The device's sizes, with room for so many adapters and waiting requests."""
    return replace(
        GPU if torch.cuda.is_available() else CPU,
        max_context=1024,
        max_adapters=adapters,
        max_ranks=adapters * rank,
        max_queue=requests + 8,
    )


def open_bench(
    size: str, config: EngineConfig, structure: Structure, model=None, *, sampling: bool = False
) -> Bench:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    marks = {"start": time.monotonic()}
    model = model or random_model(size, device)
    marks["weights"] = time.monotonic()
    prepared = prepare_model(model, config)
    lora = LoraSlots(prepared.linears, config.max_adapters, config.max_ranks)
    vocabulary = structure.compiler.vocabulary
    start_s: dict[str, float] = {"weights": marks["weights"] - marks["start"]}
    if device.type == "cuda":
        from service.engine.gpu_runner import GpuRunner

        runner = GpuRunner(prepared, config, vocabulary)
        start_s |= runner.warm_up(sampling=sampling)
    else:
        runner = Runner(prepared, config, vocabulary)
    shapes = {n: (m.base.out_features, m.base.in_features) for n, m in prepared.linears.items()}
    return Bench(Engine(runner, lora, config), runner, lora, structure, shapes, start_s)


def run(bench: Bench, work: list[EngineRequest]) -> dict[str, float]:
    """All requests at once; tokens per second over the wall clock."""
    inbox: queue.Queue[list[Output]] = queue.Queue()
    started = time.perf_counter()
    tickets = [bench.engine.submit(request, inbox.put) for request in work]
    left, tokens, first = len(work), 0, None
    try:
        while left:
            for output in inbox.get(timeout=300):
                if output.error is not None:
                    raise output.error
                first = first or time.perf_counter()
                tokens += len(output.tokens)
                left -= output.finish is not None
    finally:  # after a failure nothing may run on beside the next case
        for ticket in tickets:
            bench.engine.cancel(ticket)
    seconds = time.perf_counter() - started
    decoding = time.perf_counter() - (first or started)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "decode_tokens_per_s": tokens / max(decoding, 1e-9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.5b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    config = replace(
        workload_config(args.adapters, args.rank, args.requests),
        max_sequences=args.sequences if on_gpu else 8,
        compile_layers=on_gpu and not args.no_compile,
    )
    structure = Structure()
    bench = open_bench(args.size, config, structure)
    print("start", {k: round(v, 1) for k, v in bench.start_s.items()}, flush=True)
    adapters = [
        random_adapter(i, args.rank, bench.shapes, torch.bfloat16, pinned=on_gpu)
        for i in range(args.adapters)
    ]
    results: dict[str, list[float]] = {}

    def case(name: str, work: list[EngineRequest]) -> None:
        result = run(bench, work)
        rate = result["tokens_per_s"]
        results.setdefault(name, []).append(rate)
        print(f"{name:32} {rate:9.0f} tok/s {result['seconds']:7.2f} s", flush=True)

    count = args.requests
    run(bench, requests(min(count, 256), 9, []))
    run(bench, requests(min(count, args.adapters * 2), 8, adapters))
    for repeat in range(args.repeats):
        prefill = [replace(r, max_tokens=1) for r in requests(count, 21 + repeat, [])]
        case("prompts alone, base", prefill)
        prefill = [replace(r, max_tokens=1) for r in requests(count, 23 + repeat, adapters)]
        case("prompts alone, adapters", prefill)
        case("base", requests(count, 1 + repeat, []))
        case("adapters", requests(count, 3 + repeat, adapters))
        structured = [structure.constrain(r) for r in requests(count, 13 + repeat, adapters)]
        case("adapters, structured", structured)
        case("one request, base", requests(1, 5 + repeat, []))
        case("one request, adapter", requests(1, 7 + repeat, adapters))
        one = [structure.constrain(r) for r in requests(1, 17 + repeat, adapters)]
        case("one request, adapter, structured", one)
    best = {name: statistics.median(values) for name, values in results.items()}
    print(json.dumps({name: round(value) for name, value in best.items()}))
    if args.out:
        args.out.write_text(json.dumps({"start": bench.start_s, "tokens_per_s": results}))
    bench.engine.close()


if __name__ == "__main__":
    main()
