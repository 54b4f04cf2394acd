# pyright: basic
# torch is typed too loosely for strict mode.
"""What a step of the engine consists of on a GPU: the forms of its adapters, kernel by kernel."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine_workload import prompts
from service.engine.device_state import POSITION
from service.engine.gpu_runner import _lora_table
from service.engine.lora_slots import LoraSlot
from service.engine.runner import Part
from service.engine.triton_lora import DECODE_BLOCK

Note = Callable[[str, float, str], None]
_CONTEXT = 460
_SHOWN = 14


def measure_forms(runner: Any, adapters: int, rank: int, note: Note) -> None:
    """Decode steps and a full step of prompts with A multiplied in each way."""
    chosen = runner._pooled_from
    for rows in (2, 16, 64, runner.config.max_sequences):
        note(f"decode step of {rows}, base", _decode(runner, rows, False, adapters, rank), "ms")
        for pooled in (False, True):
            runner._pooled_from = 0 if pooled else math.inf
            runner._decode_graphs.pop((rows, True, False), None)
            milliseconds = _decode(runner, rows, True, adapters, rank)
            note(f"decode step of {rows}, {'pooled' if pooled else 'apart'}", milliseconds, "ms")
        runner._decode_graphs.pop((rows, True, False), None)
    runner._pooled_from = chosen
    for with_adapters in (False, True):
        milliseconds = _prompts(runner, adapters if with_adapters else 0, rank)
        note(f"step of prompts, {'adapters' if with_adapters else 'base'}", milliseconds, "ms")


def measure_kernels(runner: Any, adapters: int, rank: int) -> None:
    """Print the kernels that take most of a decode step and of a step of prompts."""
    rows = runner.config.max_sequences
    for count in (rows, 2):
        for with_lora in (False, True):
            _decode(runner, count, with_lora, adapters, rank)
            _show(f"decode step of {count}, adapters: {with_lora}", runner._decode_graphs[
                count, with_lora, False
            ][0].replay)  # fmt: skip
    for number in (0, adapters):
        _prompts(runner, number, rank)
        parts = _parts(runner, number, rank)
        _show(f"step of prompts, {number} adapters", lambda parts=parts: runner._forward(parts))


def _decode(runner: Any, rows: int, with_lora: bool, adapters: int, rank: int) -> float:
    """Milliseconds of a replay, on rows spread over the adapters."""
    key = (rows, with_lora, False)
    if key not in runner._decode_graphs:
        runner._capture_decode(*key)
    runner._slots[:rows] = torch.arange(rows, device=runner.device)
    ranks = sorted((row % adapters * rank, rank) for row in range(rows))
    table = _lora_table(ranks, [1] * rows, DECODE_BLOCK)
    runner._lora_blocks.zero_()
    runner._lora_blocks[: len(table)] = torch.tensor(table, device=runner.device)
    times = []
    for _ in range(20):
        runner.state.integers[:rows, POSITION] = _CONTEXT
        times.append(_timed(runner._decode_graphs[key][0].replay))
    runner._rows = []  # the device's rows are no longer what the host thinks they are
    return statistics.median(times)


def _prompts(runner: Any, adapters: int, rank: int) -> float:
    parts = _parts(runner, adapters, rank)
    return statistics.median(_timed(lambda: runner._forward(parts)) for _ in range(6))


def _parts(runner: Any, adapters: int, rank: int) -> list[Part]:
    """Prompts that fill a step, in the order of their adapters."""
    parts: list[Part] = []
    room = runner.config.prefill_tokens
    for slot, prompt in enumerate(prompts(64, 3)):
        if (room := room - len(prompt)) < 0:
            break
        number = slot * max(1, adapters // 24) % max(1, adapters)
        lora = LoraSlot(number + 1, "", slice(number * rank, (number + 1) * rank))
        parts.append(Part(slot, 0, prompt, lora if adapters else None))
    return sorted(parts, key=lambda part: part.lora_number)


def _timed(work: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        begin.record()
        work()
        end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _show(title: str, work: Callable[[], Any]) -> None:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA":
            entry = totals[event.name[:60]]
            entry[0] += event.device_time / 1000
            entry[1] += 1
    print(f"{title}: {sum(time for time, _ in totals.values()):.2f} ms of kernels", flush=True)
    for name, (time, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:_SHOWN]:
        print(f"  {time:8.3f} ms {count:5} × {name}", flush=True)
