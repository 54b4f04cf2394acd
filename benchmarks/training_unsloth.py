# pyright: basic
# drives torch, trl and unsloth, which are typed too loosely for strict checking
"""Unsloth at the job of `benchmarks.training_throughput`, for figures side by side.

    python -m benchmarks.training_unsloth BASE OUT.jsonl [--batch 8] [--nf4]

BASE is a directory with a Qwen2.5 of 1.5B or 7B. Rows of exactly 2,048 tokens, the first 75 %
masked, LoRA r=16 on all linear layers, Unsloth's own checkpointing, its trainer patches and its
default kernels. Needs a GPU and the packages unsloth and unsloth_zoo, which this project does not
depend on.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

ROW = 2048
WARMUP = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", help="directory of the base model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="after the warm-up")
    parser.add_argument("--nf4", action="store_true")
    options = parser.parse_args()

    import torch
    import unsloth  # first: it patches the others  # pyright: ignore[reportMissingImports]

    trainer = build(unsloth.FastLanguageModel, options)
    clock = Clock()
    trainer.add_callback(clock.callback())
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = clock.times[-1] - clock.times[WARMUP - 1]
    steps = len(clock.times) - WARMUP
    result = {
        "variant": f"unsloth-{options.batch}{'-qlora' if options.nf4 else ''}",
        "version": unsloth.__version__,
        "tokens_per_second": round(steps * options.batch * ROW / seconds),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "device": torch.cuda.get_device_name(),
    }
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))


def build(fast: Any, options: argparse.Namespace) -> Any:
    """Unsloth's model under TRL's trainer, which it patches."""
    import datasets
    import torch
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer = fast.from_pretrained(
        options.base, max_seq_length=ROW, dtype=torch.bfloat16, load_in_4bit=options.nf4
    )
    model = fast.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=[
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ],
        use_gradient_checkpointing="unsloth",
        random_state=0,
    )
    generator = torch.Generator().manual_seed(0)
    count = (WARMUP + options.steps) * options.batch
    ids = torch.randint(0, 150_000, (count, ROW), generator=generator)
    labels = ids.clone()
    labels[:, : ROW * 3 // 4] = -100
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "labels": labels.tolist(),
            "attention_mask": torch.ones_like(ids).tolist(),
        }
    )
    arguments = SFTConfig(
        output_dir="unsloth-scratch",
        per_device_train_batch_size=options.batch,
        max_steps=WARMUP + options.steps,
        max_length=ROW,
        bf16=True,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=arguments)


class Clock:
    """When each step had ended on the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def callback(self) -> Any:
        """For the trainer."""
        import torch
        from transformers import TrainerCallback

        times = self.times

        class Stamp(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                torch.cuda.synchronize()
                times.append(time.monotonic())

        return Stamp()


if __name__ == "__main__":
    main()
