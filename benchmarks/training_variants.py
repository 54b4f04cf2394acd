# pyright: basic
# drives torch and trl, which are typed too loosely for strict checking
"""What `benchmarks.training_throughput` compares: models by shape, a trainer by variant."""

import os
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
    "ours-12-checkpointed-liger": {"batch": 12, "checkpoint": True, "liger": True},
    "ours-2-qlora": {"batch": 2, "nf4": True},
    "ours-2-qlora-liger": {"batch": 2, "nf4": True, "liger": True},
    # decoder layers as one function (training/fused_layers.py)
    "layers-1": {"batch": 1, "layers": True},
    "layers-2": {"batch": 2, "layers": True},
    "layers-4": {"batch": 4, "layers": True},
    "layers-4-checkpointed": {"batch": 4, "checkpoint": True, "layers": True},
    "layers-8-checkpointed": {"batch": 8, "checkpoint": True, "layers": True},
    "layers-12-checkpointed": {"batch": 12, "checkpoint": True, "layers": True},
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
