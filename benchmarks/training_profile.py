# pyright: basic
# torch's profiler is typed too loosely for strict checking
"""Where the time of one training step goes: kernels, gaps between them, waits for the device."""

import time
from typing import Any

from benchmarks.training_variants import VARIANTS, attention, build


def profile(options: Any, variant: str) -> None:
    """Print where the time of one step goes."""
    import torch
    import transformers

    options.steps = options.warmup + 2
    trainer, _ = build(options, VARIANTS[variant])
    cuda = trainer.model.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    profiler = torch.profiler.profile(activities=kinds, acc_events=True)
    wall = [0.0]

    class OneStep(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == options.warmup + 1:
                torch.cuda.synchronize() if cuda else None
                profiler.start()
                wall[0] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == options.warmup + 2:
                torch.cuda.synchronize() if cuda else None
                wall[0] = time.perf_counter() - wall[0]
                profiler.stop()

    trainer.add_callback(OneStep())
    with attention(VARIANTS[variant]):
        trainer.train()
    print(f"{variant}: one step of {wall[0] * 1e3:.1f} ms under the profiler")
    averages = profiler.key_averages()
    if cuda:
        print(gaps(profiler))
        kernels = [a for a in averages if on_device(a)]
        for entry in sorted(kernels, key=lambda a: -a.self_device_time_total)[:25]:
            print(
                f"{entry.self_device_time_total / 1e3:9.2f} ms {entry.count:6d}  {entry.key[:110]}"
            )
        waits = [a for a in averages if "Synchronize" in a.key or a.key == "aten::item"]
        for entry in waits:
            print(f"waits {entry.cpu_time_total / 1e3:9.2f} ms {entry.count:6d}  {entry.key}")
    print(averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def on_device(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")


def gaps(profiler: Any) -> str:
    """How long the device computed in the profiled step, and how long it had nothing to do."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if on_device(event)
    )
    if not spans:
        return "no kernel was recorded"
    busy, idle, longest, until = 0.0, 0.0, 0.0, spans[0][0]
    for begin, end in spans:
        gap = max(0.0, begin - until)
        idle, longest = idle + gap, max(longest, gap)
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return (
        f"{len(spans)} kernels; device busy {busy / 1e3:.1f} ms, idle between kernels "
        f"{idle / 1e3:.1f} ms (longest {longest / 1e3:.2f} ms)"
    )
