# pyright: basic
# transformers' callback types are loose.
"""What a run shows while it goes on, and when it must stop."""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from training.errors import RunFailedError


class SkipBrokenSteps(transformers.TrainerCallback):
    """Leaves out single steps whose gradient is not finite, and ends a run that has many of them.

    One bad batch in low precision must not cost a run; weights that have taken one such step are
    worthless, so it is dropped before the optimizer sees it.
    """

    in_a_row_allowed = 3

    def __init__(self) -> None:
        self.skipped: list[int] = []
        self.in_a_row = 0

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Drop the gradients if any of them is not finite."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients or is_finite(gradients):
            self.in_a_row = 0
            return
        step = state.global_step + 1
        self.skipped.append(step)
        self.in_a_row += 1
        if self.in_a_row > self.in_a_row_allowed:
            raise RunFailedError(
                f"The gradient was not finite in {self.in_a_row} steps up to {step}: lower "
                "learning_rate, or use bf16 instead of fp16; the last checkpoint stays usable"
            )
        model.zero_grad(set_to_none=True)  # an optimizer leaves weights without gradients alone

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A loss that is not finite comes from weights that are not."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)) and not self.skipped:
            raise RunFailedError(
                f"The loss is {loss} at step {state.global_step}: lower learning_rate, or use "
                "bf16 instead of fp16; the last checkpoint stays usable"
            )


def is_finite(tensors: Sequence[Any]) -> bool:
    """Whether no number in any of the tensors is infinite or none; one wait for the device."""
    import torch

    norms = torch._foreach_norm(list(tensors))  # pyright: ignore[reportPrivateImportUsage] no public name
    return bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())


class SaveOnSignal(transformers.TrainerCallback):
    """SIGTERM asks for a checkpoint at the end of the step and then an orderly end."""

    def __init__(self) -> None:
        self.asked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen; only a main thread can."""
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Save and stop if asked."""
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control


class Progress(transformers.TrainerCallback):
    """A line for people (tokens/s, loss, rate, memory, time left), one of JSON for programs."""

    def __init__(self, log: Path, *, quiet: bool = False) -> None:
        self.log = log
        self.quiet = quiet
        self.started = time.monotonic()
        self.first_step = 0
        self.tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.first_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write both lines."""
        if not state.is_world_process_zero or not logs:
            return
        elapsed = time.monotonic() - self.started
        entry = {"step": state.global_step, "elapsed_s": round(elapsed, 3), **logs}
        entry |= {"memory_gib": round(peak_memory_gib(), 3)}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.quiet or "loss" not in logs:
            return
        done = state.global_step - self.first_step
        left = elapsed / done * (state.max_steps - state.global_step) if done else 0.0
        speed = float(logs.get("num_tokens", 0)) / elapsed if elapsed else 0.0
        line = (
            f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.3f}  "
            f"lr {float(logs.get('learning_rate', 0)):.1e}  {speed:,.0f} tok/s  "
            f"{peak_memory_gib():.1f} GiB  {left:.0f} s left"
        )
        end = "\n" if not sys.stderr.isatty() or state.global_step == state.max_steps else ""
        print(f"\r{line:<100}", end=end, file=sys.stderr, flush=True)


def peak_memory_gib() -> float:
    """The most that was ever allocated: on the GPU if there is one, else by this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
