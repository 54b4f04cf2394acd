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
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROW = 2048
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    # what `SFTTrainer("model", peft_config=LoraConfig(...))` does: fp32 weights under bf16
    # autocast, batch 8, activation checkpointing
    "plain": {"plain": True, "batch": 8},
    "ours-1": {"batch": 1},
    "ours-2": {"batch": 2},
    "ours-4": {"batch": 4},
    "ours-8": {"batch": 8},
    "ours-2-liger": {"batch": 2, "liger": True},
    "ours-4-liger": {"batch": 4, "liger": True},
    "ours-2-compile": {"batch": 2, "compile": True},
    "ours-8-checkpointed": {"batch": 8, "checkpoint": True},
    "ours-8-checkpointed-liger": {"batch": 8, "checkpoint": True, "liger": True},
    "ours-8-checkpointed-compile": {"batch": 8, "checkpoint": True, "compile": True},
    # each decoder layer compiled once, not the model as a whole
    "ours-8-checkpointed-regional": {
        "batch": 8,
        "checkpoint": True,
        "compile": True,
        "regional": True,
    },
    "ours-2-qlora": {"batch": 2, "nf4": True},
    "ours-2-qlora-liger": {"batch": 2, "nf4": True, "liger": True},
    # decoder layers as one function (training/fused_layers.py)
    "layers-1": {"batch": 1, "layers": True},
    "layers-2": {"batch": 2, "layers": True},
    "layers-4": {"batch": 4, "layers": True},
    "layers-4-checkpointed": {"batch": 4, "checkpoint": True, "layers": True},
    "layers-8-checkpointed": {"batch": 8, "checkpoint": True, "layers": True},
    "layers-2-qlora": {"batch": 2, "nf4": True, "layers": True},
    "layers-8-qlora-checkpointed": {"batch": 8, "nf4": True, "checkpoint": True, "layers": True},
    # the same with one choice made otherwise
    "layers-8-checkpointed-separate": {
        "batch": 8,
        "checkpoint": True,
        "layers": True,
        "set": {"matrices": "Matrices"},
    },
    "layers-8-checkpointed-slices4096": {
        "batch": 8,
        "checkpoint": True,
        "layers": True,
        "set": {"TOKENS_AT_ONCE": 4096},
    },
    "layers-8-checkpointed-slices16384": {
        "batch": 8,
        "checkpoint": True,
        "layers": True,
        "set": {"TOKENS_AT_ONCE": 16384},
    },
    "layers-8-checkpointed-cudnn": {
        "batch": 8,
        "checkpoint": True,
        "layers": True,
        "cudnn": True,
    },
    # adapters on PEFT's own path: what training/fused_lora.py is compared with
    "peft-1": {"batch": 1, "fused": False},
    "peft-2": {"batch": 2, "fused": False},
    "peft-8-checkpointed": {"batch": 8, "checkpoint": True, "fused": False},
    "peft-8-checkpointed-liger": {"batch": 8, "checkpoint": True, "liger": True, "fused": False},
    "peft-2-qlora": {"batch": 2, "nf4": True, "fused": False},
}


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


def attention(setting: dict[str, Any]) -> Any:
    """cuDNN's attention before the flash kernel, if the variant says so."""
    import contextlib

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not setting.get("cudnn") or not torch.cuda.is_available():
        return contextlib.nullcontext()
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels, set_priority=True)


def build(options: Any, setting: dict[str, Any]) -> tuple[Any, int]:
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    shape: dict[str, Any] = dict(SHAPES[options.shape])
    config = transformers.Qwen2Config(**shape, tie_word_embeddings=options.shape != "7b")
    config._attn_implementation = "sdpa"
    dtype = torch.float32 if setting.get("plain") or not cuda else torch.bfloat16
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        torch.set_default_dtype(dtype)
        model = transformers.Qwen2ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    if setting.get("nf4"):
        model = quantized(model, options)
    rows = synthetic_rows(options.steps * setting["batch"], shape["vocab_size"])
    tokenizer = small_tokenizer()
    if setting.get("plain"):
        return plain_trainer(model, tokenizer, rows, options, setting), weights
    return our_trainer(model, tokenizer, rows, options, setting), weights


def quantized(model: Any, options: Any) -> Any:
    """The same model in NF4, through a file as users get it."""
    import shutil

    import torch
    import transformers

    from training.model import nf4_config

    folder = Path(f"/tmp/shape-{options.shape}")
    model.config.use_cache = False
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache() if torch.cuda.is_available() else None
    result = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=nf4_config(torch.bfloat16),
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return result


def synthetic_rows(count: int, vocabulary: int) -> list[Any]:
    import random

    from training.rows import IGNORED, TokenRow

    rng = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [rng.randrange(3, vocabulary) for _ in range(ROW)]
        masked = ROW * 3 // 4
        rows.append(TokenRow(ids, [IGNORED] * masked + ids[masked:]))
    return rows


def small_tokenizer() -> Any:
    """Only its pad token is used: rows are tokens already."""
    import tokenizers
    import transformers

    words = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<eos>"
    )


def plain_trainer(model: Any, tokenizer: Any, rows: Any, options: Any, setting: Any) -> Any:
    import peft
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from training.fit import to_dataset

    arguments = SFTConfig(
        output_dir="/tmp/plain",
        max_length=ROW,
        max_steps=options.steps,
        save_strategy="no",
        use_cpu=model.device.type == "cpu",  # where the default, bf16, is refused
        bf16=model.device.type != "cpu",
        per_device_train_batch_size=setting["batch"],
    )
    adapter = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        peft_config=adapter,
    )


def our_trainer(model: Any, tokenizer: Any, rows: Any, options: Any, setting: Any) -> Any:
    import torch

    if setting.get("regional"):
        os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"
    import training.fused_mlp
    from training.config import DataConfig, FitConfig, MethodConfig, SourceConfig, TrainingConfig
    from training.fit import build_trainer
    from training.model import Base

    for name, value in setting.get("set", {}).items():
        value = vars(training.fused_mlp).get(value, value)
        setattr(training.fused_mlp, name, value)
    config = TrainingConfig(
        name="throughput",
        base="tiny:qwen2",
        data=DataConfig(train=(SourceConfig(path="none"),), max_length=ROW),
        method=MethodConfig(
            r=16, lora_alpha=32, quantization="nf4" if setting.get("nf4") else None
        ),
        fit=FitConfig(
            max_steps=options.steps,
            per_device_train_batch_size=setting["batch"],
            gradient_accumulation_steps=1,
            activation_checkpointing=bool(setting.get("checkpoint")),
            liger=bool(setting.get("liger")),
            torch_compile=bool(setting.get("compile")),
            fused_lora=setting.get("fused", True),
            fused_layers=setting.get("layers", False),
            eval_steps=10_000,
            report_to=(),
        ),
        output_dir="/tmp/ours",
    )
    model.config.use_cache = False
    precision = "nf4" if setting.get("nf4") else ("bf16" if torch.cuda.is_available() else "fp32")
    base = Base(model, tokenizer, Path("/tmp"), precision, None)
    return build_trainer(config, base, rows, [])


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
