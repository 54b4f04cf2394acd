# pyright: basic
# trl, transformers and datasets are typed too loosely for strict checking.
"""The optimisation: TRL's trainer over rows that were tokenized and checked here."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.attention import ignore_right_padding, use_packed_attention
from training.config import MethodConfig, TrainingConfig
from training.errors import OutOfMemoryError, RunFailedError, TrainingError
from training.fused_layers import fuse_layers
from training.fused_lora import fuse
from training.model import Base, is_sharded, is_tied, load_start, lora_config
from training.rows import TokenRow

_BIG_ADAPTER = 100_000_000
"""From so many trained weights on, Adam's state in 8 bits saves more than it costs."""


@dataclass
class Fitted:
    """What a finished run leaves."""

    model: Any
    """The trained PEFT model (or the whole model for `full`)."""
    directory: Path
    """Where the adapter lies in PEFT layout."""
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def fit(
    config: TrainingConfig,
    base: Base,
    train: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    *,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    remedies: Callable[[], list[str]] = list,
) -> Fitted:
    """Train and save; with `resume` go on from the last complete checkpoint.

    Raises:
        OutOfMemoryError: With what to change; the last checkpoint stays.
        RunFailedError: The loss left the numbers, or the disk is full.
    """
    trainer = build_trainer(config, base, train, validation, callbacks)
    initial = save_initial(config, trainer)
    return run_trainer(config, trainer, initial=initial, resume=resume, remedies=remedies)


def run_trainer(
    config: TrainingConfig,
    trainer: Any,
    *,
    initial: Path | None = None,
    resume: bool = False,
    remedies: Callable[[], list[str]] = list,
) -> Fitted:
    """Train and save the adapter, whatever the trainer's loss is; raises what `fit` raises."""
    import torch

    checkpoint = last_checkpoint(config.run_dir) if resume else None
    try:
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        directory = config.run_dir / "adapter"
        if trainer.accelerator.is_main_process:
            save_adapter(
                trainer.accelerator.unwrap_model(trainer.model),
                directory,
                config.method.store_as,
                initial,
            )
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(remedies()) from error
    except OSError as error:
        raise RunFailedError(
            f"Writing to {config.run_dir} failed ({error.strerror or error}); free some space and "
            "run again with --resume"
        ) from error
    finally:
        trainer.accelerator.end_training()
    return Fitted(
        model=trainer.model,
        directory=directory,
        history=list(trainer.state.log_history),
        summary={**output.metrics, "skipped_steps": skipped_steps(trainer)},
    )


def build_trainer(
    config: TrainingConfig,
    base: Base,
    train: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    callbacks: Sequence[Any] = (),
) -> Any:
    """TRL's trainer with fp32 trained weights and an own learning rate for embeddings."""
    import transformers
    import trl.trainer.sft_config
    import trl.trainer.sft_trainer

    from training.progress import SkipBrokenSteps

    peft_config, start = None, base.model
    if config.start_from:
        start = load_start(config, base)
    elif config.method.kind == "lora":
        peft_config = lora_config(config.method, base.model, is_tied(base.model))
    arguments = sft_arguments(config, base, evaluate=bool(validation))

    class Trainer(trl.trainer.sft_trainer.SFTTrainer):
        """SFTTrainer whose `modules_to_save` learn at their own rate."""

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            if self.optimizer is None and config.method.modules_to_save:
                rate = config.fit.embedding_learning_rate or config.fit.learning_rate / 10
                groups = embedding_groups(self.model, rate, config.fit.learning_rate)
                kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(self.args)
                self.optimizer = kind(groups, **options)
            return super().create_optimizer(*args, **kwargs)

    trainer = Trainer(
        model=start,
        args=arguments,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation) if validation else None,
        processing_class=base.tokenizer,
        peft_config=peft_config,
        callbacks=[SkipBrokenSteps(), *callbacks],
    )
    # TRL leaves adapters of a 4-bit base, and full copies of modules, in 16 bits, where most small
    # steps are rounded away.
    model: Any = trainer.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # a compiler fuses PEFT's own path and cannot see into ours; FSDP takes weights away meanwhile
    ours = config.fit.fused_lora and not config.fit.torch_compile and not is_sharded()
    if config.method.kind == "lora" and ours:
        fuse(trainer.model)
        if config.fit.fused_layers:
            fuse_layers(trainer.model)
    ignore_right_padding(trainer.model)
    if config.fit.packing:
        use_packed_attention(trainer.model)
    for unwanted in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(unwanted)
    return trainer


def sft_arguments(config: TrainingConfig, base: Base, *, evaluate: bool) -> Any:
    """Our configuration in TRL's names."""
    import trl.trainer.sft_config
    import trl.trainer.sft_trainer

    run = config.fit
    return trl.trainer.sft_config.SFTConfig(
        **shared_arguments(config, base, evaluate=evaluate),
        max_length=config.data.max_length,
        packing=run.packing,
        packing_strategy="bfd_split" if config.objective == "text" else "bfd",
        eval_packing=False,
        train_sampling_strategy=(
            "group_by_length" if run.group_by_length and not run.packing else "random"
        ),
    )


def shared_arguments(config: TrainingConfig, base: Base, *, evaluate: bool) -> dict[str, Any]:
    """Settings that every one of TRL's trainers knows."""
    run = config.fit
    on_cuda = base.model.device.type == "cuda"
    computes_in = "bf16" if base.precision == "nf4" and on_cuda else base.precision
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(config.run_dir / "tensorboard")
    steps = run.eval_steps if run.eval_steps < 1 else int(run.eval_steps)
    return {
        "output_dir": str(config.run_dir / "checkpoints"),
        "learning_rate": run.learning_rate,
        "num_train_epochs": run.num_train_epochs,
        "max_steps": run.max_steps,
        "per_device_train_batch_size": run.per_device_train_batch_size,
        "per_device_eval_batch_size": run.per_device_eval_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "lr_scheduler_type": run.lr_scheduler_type,
        "warmup_steps": run.warmup,
        "weight_decay": run.weight_decay,
        "max_grad_norm": run.max_grad_norm,
        "optim": choose_optimizer(config, base),
        "bf16": computes_in == "bf16",
        "fp16": computes_in == "fp16",
        "use_cpu": not on_cuda,
        "activation_checkpointing": run.activation_checkpointing,
        "torch_compile": run.torch_compile,
        "use_liger_kernel": run.liger,
        "seed": run.seed,
        "data_seed": run.seed,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": steps,
        "save_strategy": "steps",
        "save_steps": steps,
        "save_total_limit": run.save_total_limit,
        "logging_steps": run.logging_steps,
        "logging_first_step": True,
        "report_to": list(run.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_cuda,
        "prediction_loss_only": True,
        "run_name": config.name,
    }


def choose_optimizer(config: TrainingConfig, base: Base) -> str:
    """Fused AdamW, or paged 8-bit AdamW where Adam's state would outgrow the model."""
    if config.fit.optim != "auto":
        return config.fit.optim
    if base.model.device.type != "cuda":
        return "adamw_torch"
    linear = sum(p.numel() for n, p in base.model.named_parameters() if p.ndim == 2)
    trained = linear if config.method.kind == "full" else _adapter_size(config, base.model)
    return "paged_adamw_8bit" if trained >= _BIG_ADAPTER else "adamw_torch_fused"


def _adapter_size(config: TrainingConfig, model: Any) -> int:
    import torch

    return sum(
        config.method.r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    )


def embedding_groups(model: Any, embedding_rate: float, rate: float) -> list[dict[str, Any]]:
    """Two groups for the optimizer: full copies of modules at their own rate, undecayed."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    copies = [p for n, p in trained if "modules_to_save" in n]
    rest = [p for n, p in trained if "modules_to_save" not in n]
    groups = [
        {"params": rest, "lr": rate},
        {"params": copies, "lr": embedding_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def to_dataset(rows: Sequence[TokenRow]) -> Any:
    """Rows as TRL takes tokenized data: it leaves `labels` as they are."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(
        {"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}
    )


def changes_base(method: MethodConfig) -> bool:
    """Whether the start of the adapter takes its own product out of the base's weights."""
    return str(method.init_lora_weights).lower().startswith(("pissa", "olora", "corda"))


def save_initial(config: TrainingConfig, trainer: Any) -> Path | None:
    """Where PiSSA and its kin began, without which the result fits no other base than this one."""
    if config.method.kind != "lora" or not changes_base(config.method):
        return None
    directory = config.run_dir / "initial"
    settings = trainer.model.peft_config["default"]
    kind, settings.init_lora_weights = settings.init_lora_weights, True
    trainer.model.save_pretrained(directory)
    settings.init_lora_weights = kind
    return directory


def save_adapter(model: Any, directory: Path, store_as: str, initial: Path | None = None) -> None:
    """Write weights and configuration aside, then rename, so that no half adapter is ever seen.

    The model's own trained weights are rounded likewise: what is judged is what was saved.
    """
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[store_as]
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    arguments: dict[str, Any] = {}
    if initial is not None:
        arguments["path_initial_model_for_weight_conversion"] = str(initial)
    if hasattr(model, "peft_config"):
        arguments["selected_adapters"] = ["default"]  # a frozen reference may stand beside it
    model.save_pretrained(aside, safe_serialization=True, **arguments)
    for file in aside.glob("adapter_model.safetensors"):
        rounded = {name: value.to(dtype) for name, value in load_file(file).items()}
        save_file(rounded, file, metadata={"format": "pt"})
    (aside / "README.md").unlink(missing_ok=True)  # a template that says nothing of this run
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def skipped_steps(trainer: Any) -> list[int]:
    """Steps that were left out because their gradient was not finite."""
    from training.progress import SkipBrokenSteps

    callbacks = trainer.callback_handler.callbacks
    return next((c.skipped for c in callbacks if isinstance(c, SkipBrokenSteps)), [])


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    folder = run_dir / "checkpoints"
    numbered = sorted(
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    )
    # the trainer's state is the last file that transformers writes
    complete = [path for _, path in numbered if (path / "trainer_state.json").is_file()]
    return complete[-1] if complete else None


def held_out_loss(history: Sequence[dict[str, Any]]) -> float | None:
    """The last held-out loss of a run."""
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


__all__ = ["Fitted", "TrainingError", "build_trainer", "fit", "held_out_loss", "last_checkpoint"]
