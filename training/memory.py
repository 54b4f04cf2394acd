"""How much GPU memory a run takes, by part, and what to change when it is too much.

Counted from the model's shapes: weights, trained weights with gradients and Adam's state, what the
backward pass keeps for each token and layer, and what a step needs for a moment. On one H100 the
sum was within 5 % of the measured peak in the configurations of docs/training.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from training.config import TrainingConfig
from training.errors import ConfigError

GIB = 2**30
CONTEXT = 1.0 * GIB
"""The CUDA context and what the allocator cannot use; not in the peak that torch reports."""

_NF4_BYTES = 0.516
"""4 bits, one 8-bit scale for 64 values, one 32-bit scale for 256 of those."""


@dataclass(frozen=True, slots=True)
class Shape:
    """As much of a model as its memory depends on."""

    weights: int
    linear: int
    """Weights in the linear layers of the blocks: what NF4 shrinks and LoRA adapts."""
    adapted: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of every linear layer of the blocks."""
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    embedding: int
    fusible: bool = False
    """Whether training/fused_layers.py knows the architecture."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes by part; `peak` is what `torch.cuda.max_memory_allocated` would say."""

    weights: float
    trained: float
    activations: float
    transient: float

    @property
    def peak(self) -> float:
        """The sum of the parts."""
        return self.weights + self.trained + self.activations + self.transient


def predict(config: TrainingConfig, shape: Shape, row_length: int, precision: str) -> Prediction:
    """The peak of one training step.

    Args:
        config: The run.
        shape: Of its base model.
        row_length: Tokens of the longest row, padding included.
        precision: `bf16`, `fp16` or `fp32`.
    """
    fit, method = config.fit, config.method
    width = 4 if precision == "fp32" else 2
    if method.quantization == "nf4":
        weights = shape.linear * _NF4_BYTES + (shape.weights - shape.linear) * width
    else:
        weights = float(shape.weights * width)
    count = trained_weights(config, shape)
    adam = 2 if "8bit" in _optimizer(config, count) else 8
    trained = count * (4 + 4 + adam)
    if method.kind == "full":
        weights = 0.0  # they are the trained ones
    tokens = fit.per_device_train_batch_size * row_length
    if is_one_function(config, shape):
        activations, transient = _of_fused_layers(config, shape, tokens, width)
    else:
        layer = tokens * bytes_per_token_and_layer(config, shape, width)
        transient = tokens * width * (3 * shape.intermediate + 2 * shape.hidden)
        if fit.activation_checkpointing:
            activations = shape.layers * tokens * shape.hidden * width + layer
        else:
            activations = shape.layers * layer
    return Prediction(weights, float(trained), float(activations), float(transient))


def is_one_function(config: TrainingConfig, shape: Shape) -> bool:
    """Whether training/fused_layers.py takes the layers."""
    fit, method = config.fit, config.method
    adapted = {name for name, _, _ in shape.adapted}
    return (
        shape.fusible
        and fit.fused_lora
        and fit.fused_layers
        and not fit.torch_compile
        and method.kind == "lora"
        and not method.use_dora
        and not method.lora_dropout
        and (isinstance(method.target_modules, str) or adapted <= set(method.target_modules))
    )


def _of_fused_layers(
    config: TrainingConfig, shape: Shape, tokens: int, width: int
) -> tuple[float, float]:
    """What they keep for the backward pass, and what they need for a moment."""
    from training.fused_mlp import TOKENS_AT_ONCE

    hidden, heads, wide = shape.hidden, shape.query, shape.intermediate
    kept, slices = hidden + heads, -(-tokens // TOKENS_AT_ONCE)
    at_once = tokens // slices * (3 * wide + 4 * hidden)
    if not config.fit.activation_checkpointing:
        kept += hidden + heads + 2 * shape.key_value + 2 * wide
        at_once = tokens * (wide + 4 * hidden)
    gradients = tokens * (2 * hidden + heads)
    matrices = 3 * wide * hidden
    if config.method.quantization is not None:
        matrices += 3 * wide * hidden + hidden * heads
    return (
        float(shape.layers * tokens * kept * width),
        float((at_once + gradients + matrices) * width),
    )


def bytes_per_token_and_layer(config: TrainingConfig, shape: Shape, width: int) -> float:
    """What the backward pass keeps of one token in one block."""
    fit = config.fit
    plain_lora = config.method.kind == "lora" and not (
        fit.fused_lora
        and not fit.torch_compile
        and not config.method.use_dora
        and not config.method.lora_dropout
    )
    norms = 2 * shape.hidden * (width if fit.liger else 4)
    inputs = 2 * shape.hidden * width  # of q, k, v together, and of gate and up together
    if plain_lora and config.method.quantization is None:
        inputs = 5 * shape.hidden * width  # a copy for each adapted layer
    attention = (2 * shape.query + 2 * shape.key_value) * width
    mlp = (3 if fit.liger else 4) * shape.intermediate * width
    return norms + inputs + attention + mlp


def trained_weights(config: TrainingConfig, shape: Shape) -> int:
    """How many numbers the optimizer moves."""
    method = config.method
    if method.kind == "full":
        return shape.weights
    targets = method.target_modules
    chosen = [
        (inputs, outputs)
        for name, inputs, outputs in shape.adapted
        if isinstance(targets, str) or name in targets
    ]
    copies = shape.embedding * bool(method.modules_to_save)
    return sum(method.r * (inputs + outputs) for inputs, outputs in chosen) + copies


def _optimizer(config: TrainingConfig, trained: int) -> str:
    if config.fit.optim != "auto":
        return config.fit.optim
    return "paged_adamw_8bit" if trained >= 100_000_000 else "adamw_torch_fused"


def remedies(
    config: TrainingConfig, shape: Shape, row_length: int, precision: str
) -> Iterator[tuple[str, Prediction]]:
    """What to change, the cheapest in quality first, each on top of those before it."""

    def predicted() -> Prediction:
        return predict(config, shape, row_length, precision)

    fit = config.fit
    while fit.per_device_train_batch_size > 1:
        fit = fit.model_copy(
            update={
                "per_device_train_batch_size": fit.per_device_train_batch_size // 2,
                "gradient_accumulation_steps": fit.gradient_accumulation_steps * 2,
            }
        )
        config = config.model_copy(update={"fit": fit})
        yield (
            f"per_device_train_batch_size: {fit.per_device_train_batch_size}, "
            f"gradient_accumulation_steps: {fit.gradient_accumulation_steps} (same result, slower)",
            predicted(),
        )
    if not fit.activation_checkpointing:
        fit = fit.model_copy(update={"activation_checkpointing": True})
        config = config.model_copy(update={"fit": fit})
        yield "activation_checkpointing: true (same result, about a quarter slower)", predicted()
    if config.method.kind == "full":
        yield (
            "method.kind: lora (an adapter instead of all weights)",
            predict(
                config.model_copy(
                    update={"method": config.method.model_copy(update={"kind": "lora"})}
                ),
                shape,
                row_length,
                precision,
            ),
        )
        return
    if config.method.quantization is None:
        method = config.method.model_copy(update={"quantization": "nf4"})
        config = config.model_copy(update={"method": method})
        yield "method.quantization: nf4 (QLoRA: slower, a little worse)", predicted()
    if isinstance(config.method.target_modules, str):
        method = config.method.model_copy(update={"target_modules": ("q_proj", "v_proj")})
        config = config.model_copy(update={"method": method})
        yield "method.target_modules: [q_proj, v_proj] (learns less)", predicted()
    while config.method.r > 8:
        method = config.method.model_copy(update={"r": config.method.r // 2})
        config = config.model_copy(update={"method": method})
        yield f"method.r: {method.r} (learns less)", predicted()


def shape_of(model: Any) -> Shape:
    """The shape of a loaded (or meta) model; also of a quantised one."""
    from training.fused_layers import LAYERS

    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    linear = [
        (name.rpartition(".")[2], int(module.in_features), int(module.out_features))
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and "lm_head" not in name and "lora_" not in name
    ]
    embedding = int(model.get_input_embeddings().weight.numel())
    in_linear = sum(inputs * outputs for _, inputs, outputs in linear)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return Shape(
        weights=in_linear + embedding * (1 if tied else 2),
        linear=in_linear,
        adapted=tuple(linear),
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        intermediate=int(config.intermediate_size),
        query=int(config.num_attention_heads * head),
        key_value=int(config.num_key_value_heads * head),
        embedding=embedding,
        fusible=any(type(module).__name__ in LAYERS for module in model.modules()),
    )


def remedies_for(config: TrainingConfig, base: Any) -> list[str]:
    """What to change after running out of memory, with predictions."""
    length = config.data.max_length
    found = remedies(config, shape_of(base.model), length, base.precision)
    return [f"{text}: {prediction.peak / GIB:.1f} GiB" for text, prediction in found][:5]


def describe_plan(config: TrainingConfig, vram: str) -> tuple[str, bool]:
    """A table of the parts, whether they fit, and if not what to change."""
    available = parse_size(vram) if vram else _this_gpu()
    shape, row_length = _measure(config)
    precision = "bf16" if config.fit.precision == "auto" else config.fit.precision
    now = predict(config, shape, row_length, precision)
    batch = config.fit.per_device_train_batch_size
    lines = [
        f"{config.base}, {config.method.quantization or precision}, batch {batch} x {row_length} "
        f"tokens, {trained_weights(config, shape):,} trained weights",
        "",
        "| part | GiB |",
        "|---|---|",
        f"| base weights | {now.weights / GIB:.2f} |",
        f"| trained weights, gradients, Adam | {now.trained / GIB:.2f} |",
        f"| kept for the backward pass | {now.activations / GIB:.2f} |",
        f"| for a moment in each step | {now.transient / GIB:.2f} |",
        f"| **peak** | **{now.peak / GIB:.2f}** |",
        f"| CUDA context and fragmentation | {CONTEXT / GIB:.2f} |",
        "",
    ]
    if available is None:
        return "\n".join([*lines, "No GPU here; say --vram 16GiB to see whether it fits."]), True
    fits = now.peak + CONTEXT <= available
    lines.append(f"{'Fits' if fits else 'Does NOT fit'} into {available / GIB:.0f} GiB.")
    if not fits:
        lines.append("What to change, the cheapest in quality first, each on top of the former:")
        for text, prediction in remedies(config, shape, row_length, precision):
            enough = prediction.peak + CONTEXT <= available
            lines.append(f"- {text}: {prediction.peak / GIB:.2f} GiB{' ← fits' if enough else ''}")
            if enough:
                break
        else:
            lines.append("- a smaller base model")
    return "\n".join(lines), fits


def parse_size(text: str) -> float:
    """`16GiB`, `24 GB` or `16` (GiB) in bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(GiB|GB|MiB|G|)\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError("--vram", None, text, "expected a size such as 16GiB")
    unit = {"gb": 1e9, "mib": 2**20}.get(match[2].lower(), GIB)
    return float(match[1]) * unit


def _this_gpu() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties: Any = cast(Any, torch.cuda).get_device_properties(0)
    return float(properties.total_memory)


def _measure(config: TrainingConfig) -> tuple[Shape, int]:
    import torch
    import transformers

    from training.model import load_tokenizer, prepare
    from training.rows import Renderer, make_rows
    from training.run import prepare_data

    path = prepare(config.base).path
    with torch.device("meta"):
        loader: Any = transformers
        model = loader.AutoModelForCausalLM.from_config(loader.AutoConfig.from_pretrained(path))
    model.tie_weights()
    if config.fit.packing or config.objective == "text":
        return shape_of(model), config.data.max_length
    split = prepare_data(config).split
    renderer = Renderer(load_tokenizer(path), config.prompt_format)
    rows = make_rows(split.train, renderer, config.data, split.report)
    return shape_of(model), max(len(row.input_ids) for row in rows)
