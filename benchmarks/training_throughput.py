# pyright: basic
# drives torch and trl, which are typed too loosely for strict checking
"""Training speed: a plain TRL + PEFT script with its defaults against this project's settings.

    python -m benchmarks.training_throughput OUT.jsonl [--shape 1.5b] [--variants plain ours …]
    python -m benchmarks.training_throughput OUT.jsonl --profile --variants ours-8-checkpointed

Random weights in the shape of Qwen2.5-1.5B or 7B, rows of exactly 2,048 tokens (a packed row), the
first 75 % of each masked as a prompt, LoRA r=16 on all linear layers everywhere. Each variant is a
process of its own; tokens/s are over the steps after the warm-up. MFU counts 4N FLOP a token for
LoRA (forward, and backward through activations only) over the bf16 rate measured on the spot.
`--profile` prints instead what one step after the warm-up does: its 25 costliest kernels, the time
in which the device waits for the next launch, and the calls in which the program waits for it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training_profile import profile
from benchmarks.training_variants import ROW, SHAPES, VARIANTS, attention, build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="1.5b", choices=tuple(SHAPES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--profile", action="store_true", help="one step by kernels, untimed")
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        (profile if options.profile else measure)(options, options.variants[0])
        return
    for variant in options.variants:
        command = [sys.executable, "-m", "benchmarks.training_throughput", str(options.out)]
        command += ["--worker", "--shape", options.shape, "--variants", variant]
        command += ["--steps", str(options.steps), "--warmup", str(options.warmup)]
        command += ["--profile"] if options.profile else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:]
            keep(options.out, {"shape": options.shape, "variant": variant, "failed": reason})
            print(f"{variant}: {done.stderr[-600:]}", flush=True)
        print(done.stdout.strip(), flush=True)


def keep(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def measure(options: Any, variant: str) -> None:
    import torch

    setting = VARIANTS[variant]
    trainer, weights = build(options, setting)
    device = trainer.model.device
    clock = Clock(options.warmup, options.steps)
    trainer.add_callback(clock.callback())
    with attention(setting):
        trainer.train()
    micro = options.steps - options.warmup
    tokens = micro * ROW * setting["batch"]
    rate = tokens / (clock.end - clock.begin)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    ceiling = matmul_rate(device)
    record = {
        "shape": options.shape,
        "variant": variant,
        "tokens_per_s": round(rate),
        "peak_gib": round(peak, 2),
        "mfu": round(4 * weights * rate / ceiling, 3),
        "matmul_tflops": round(ceiling / 1e12),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "torch": torch.__version__,
    }
    keep(options.out, record)
    print(json.dumps(record), flush=True)


class Clock:
    """Times the steps after the warm-up; waits for the device only at both ends."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps, self.begin, self.end = warmup, steps, 0.0, 0.0

    def callback(self) -> Any:
        import torch
        import transformers

        clock = self

        class Callback(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step not in (clock.warmup, clock.steps):
                    return
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.end = time.perf_counter()
                if state.global_step == clock.warmup:
                    clock.begin = clock.end

        return Callback()


def matmul_rate(device: Any) -> float:
    """FLOP/s of a large product in bf16, on random data."""
    import torch

    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        torch.matmul(a, b)
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(10):
        torch.matmul(a, b)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
