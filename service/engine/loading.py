# pyright: basic
# transformers' tokenizers and models are typed too loosely for strict mode.
"""From a directory to a running engine: precision, sizes, weights, vocabulary."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoTokenizer

from model_registry.bases.files import stored_precision
from service.engine.adapter_store import AdapterStore
from service.engine.attention import BLOCK
from service.engine.config import EngineConfig
from service.engine.cpu_weights import cache_folder
from service.engine.device_grammar import GrammarCompiler
from service.engine.engine import Engine
from service.engine.lora_slots import LoraSlots
from service.engine.model import EngineModel, load_weights, prepare_model
from service.engine.runner import Runner
from service.engine.token_bytes import token_bytes

Precision = Literal["auto", "fp32", "bf16", "fp16", "nf4", "dequantized"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

CPU = EngineConfig(
    max_sequences=8, max_context=4096, prefill_tokens=512, block=BLOCK, max_ranks=1024, max_drafts=2
)
GPU = EngineConfig(
    max_sequences=256,
    max_context=2048,
    prefill_tokens=8192,
    prefill_patience_s=0.05,
    max_queue=4096,
    max_ranks=528,
    overlap=True,
    compile_layers=True,
    jump_forward=False,
)


@dataclass
class OpenEngine:
    """A running engine and what a caller needs to speak to it."""

    engine: Engine
    store: AdapterStore
    tokenizer: Any
    tokens: list[bytes | None]
    compiler: GrammarCompiler
    config: EngineConfig
    precision: str
    shapes: dict[str, tuple[int, int]]
    """Outputs and inputs of every module that may be adapted."""
    adapter_dtype: torch.dtype
    is_on_gpu: bool


def default_config(max_adapters: int, device: torch.device) -> EngineConfig:
    """Sizes for a device."""
    base = GPU if device.type == "cuda" else CPU
    ranks = max(base.max_ranks, 16 * max_adapters + 16)
    return replace(base, max_adapters=max_adapters, max_ranks=ranks)


def open_engine(
    directory: Path,
    precision: Precision = "auto",
    config: EngineConfig | None = None,
    cache_dir: Path | None = None,
) -> OpenEngine:
    """Load a base model and start the engine's thread.

    Args:
        cache_dir: Where what takes long to make may be kept for the next start.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config or default_config(32, device)
    if precision == "auto":
        config = replace(config, int8_on_cpu=True)
        precision = stored_precision(directory)
    dtype = _DTYPES.get(precision, torch.bfloat16)
    model = load_weights(directory, dtype, device, in_nf4=precision == "nf4")
    if precision == "dequantized":
        pass_through_nf4(model)
    rounded_cache = cache_folder(directory, cache_dir) if cache_dir else None
    prepared = prepare_model(model, config, rounded_cache)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = token_bytes(tokenizer, prepared.vocab_size)
    compiler = GrammarCompiler(tokens)
    lora = LoraSlots(prepared.linears, config.max_adapters, config.max_ranks)
    runner = open_runner(prepared, config, compiler)
    return OpenEngine(
        engine=Engine(runner, lora, config),
        store=AdapterStore(config.host_adapter_bytes),
        tokenizer=tokenizer,
        tokens=tokens,
        compiler=compiler,
        config=config,
        precision=precision,
        shapes={
            name: (linear.out_features, linear.in_features)
            for name, linear in prepared.linears.items()
        },
        adapter_dtype=dtype,
        is_on_gpu=device.type == "cuda",
    )


def open_runner(model: EngineModel, config: EngineConfig, compiler: GrammarCompiler) -> Runner:
    """The runner for the model's device, warmed up."""
    if model.device.type != "cuda":
        return Runner(model, config, compiler.vocabulary)
    from service.engine.gpu_runner import GpuRunner

    runner = GpuRunner(model, config, compiler.vocabulary)
    runner.warm_up()
    return runner


def pass_through_nf4(model: Any) -> None:
    """Round the layers' weights to NF4 and back: what a QLoRA adapter was trained on.

    Must run on freshly loaded weights: bitsandbytes repacks 4-bit ones at the first forward.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for module in model.base_model.layers.modules():
        if isinstance(module, nn.Linear):
            packed, state = quantize_4bit(module.weight.data, quant_type="nf4")
            module.weight.data = dequantize_4bit(packed, state).to(module.weight.dtype)
