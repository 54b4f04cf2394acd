"""How much memory a run takes, and what to change when it is too much."""

from typing import Any

from training.config import TrainingConfig


def remedies_for(config: TrainingConfig, base: Any) -> list[str]:
    """What to change after running out of memory, the cheapest in quality first."""
    fit = config.fit
    result: list[str] = []
    if fit.per_device_train_batch_size > 1:
        half = fit.per_device_train_batch_size // 2
        result.append(
            f"per_device_train_batch_size: {half} with gradient_accumulation_steps: "
            f"{fit.gradient_accumulation_steps * 2}"
        )
    if not fit.activation_checkpointing:
        result.append("activation_checkpointing: true")
    if config.method.quantization is None and config.method.kind == "lora":
        result.append("quantization: nf4")
    return result


def describe_plan(config: TrainingConfig, vram: str) -> tuple[str, bool]:
    raise NotImplementedError
