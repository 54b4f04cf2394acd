# pyright: basic
# transformers' models are typed too loosely for strict mode.
"""A base model from a directory: unmodified transformers modules, with our attention and LoRA
layers.

What is not known to work is refused by name, since it would answer wrongly without an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from service.engine.attention import ATTENTION_NAME, SlotCache, StepPlan, slot_attention
from service.engine.config import EngineConfig
from service.engine.cpu_int8 import Int8Linear
from service.engine.cpu_rounding import round_layers
from service.engine.lora import (
    LoraLinear,
    LoraStep,
    WideningLinear,
    gate_mlps,
    wrap_linears,
)
from service.engine.memory import reserve
from service.errors import BackendError

_LAYER_TYPES = {"full_attention", "sliding_attention"}

AttentionInterface.register(ATTENTION_NAME, slot_attention)


class UnsupportedModelError(BackendError):
    """The engine cannot run this architecture; use the `reference` backend."""

    def __init__(self, model_type: str, reason: str) -> None:
        super().__init__(f"The engine cannot run {model_type}: {reason}; use the reference backend")


@dataclass
class EngineModel:
    """A base with its KV slots and LoRA layers; `plan` and `lora_step` describe the running
    step."""

    model: Any
    """transformers' own; its attributes are known at run time only."""
    plan: StepPlan
    lora_step: LoraStep
    linears: dict[str, LoraLinear]
    keys_values: torch.Tensor
    """[layers, 2, slots, heads, context, head size]."""
    vocab_size: int
    activations: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.keys_values.device

    def logits(self, ids, positions, keep) -> torch.Tensor:
        """Logits [kept, vocabulary] after a packed row of tokens; `keep` are indices into it."""
        embedded = self.model.get_input_embeddings()(ids[None]).to(self.activations)
        output = self.model(
            inputs_embeds=embedded,
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=keep,
        )
        return output.logits[0]


def load_weights(
    directory: Path, dtype: torch.dtype, device: torch.device, *, in_nf4: bool = False
) -> Any:
    """The model of a directory as transformers builds it."""
    transformers_logging.disable_progress_bar()
    options: dict[str, object] = {"dtype": dtype, "device_map": {"": str(device)}}
    if in_nf4:
        if device.type != "cuda":
            raise UnsupportedModelError("nf4 on the CPU", "4-bit layers need a GPU")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def prepare_model(
    model: Any, config: EngineConfig, rounded_cache: Path | None = None
) -> EngineModel:
    """Put our attention and LoRA layers into a loaded model, and allocate its KV slots.

    Args:
        rounded_cache: Where 8-bit weights are kept between starts.

    Raises:
        UnsupportedModelError: The architecture is not one that the engine can run.
    """
    _check_supported(model)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    weights = next(model.parameters())
    narrow_on_cpu = weights.device.type == "cpu" and weights.dtype != torch.float32
    activations = torch.float32 if narrow_on_cpu else weights.dtype
    plan, step = StepPlan(), LoraStep()
    layers = model.base_model.layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    rows = config.max_ranks if config.max_adapters else 0
    linears = wrap_linears(layers, prefix, step, rows)
    if weights.is_cuda:
        gate_mlps(layers, step)
    if narrow_on_cpu:
        in_int8 = config.int8_on_cpu and Int8Linear.is_supported()
        _widen(model, keep_head=in_int8)
        if in_int8:
            round_layers(model, rounded_cache)
    return EngineModel(
        model=model,
        plan=plan,
        lora_step=step,
        linears=linears,
        keys_values=_allocate_slots(model, plan, config, weights, activations),
        vocab_size=model.get_input_embeddings().weight.shape[0],
        activations=activations,
    )


def _check_supported(model: Any) -> None:
    config = model.config
    kind = config.model_type
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if unknown := layer_types - _LAYER_TYPES:
        raise UnsupportedModelError(kind, f"it has layers of type {', '.join(sorted(unknown))}")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(kind, "its attention cannot be replaced")
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModelError(kind, "it caps attention logits")
    if any("expert" in name for name, _ in model.named_modules()):
        raise UnsupportedModelError(kind, "it is a mixture of experts")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(kind, "it is not causal")
    rope = getattr(config, "rope_parameters", None) or {}
    if any("dynamic" in str(value) or "longrope" in str(value) for value in rope.values()):
        raise UnsupportedModelError(kind, "its rotary embedding depends on the batch")


def _allocate_slots(
    model: Any,
    plan: StepPlan,
    config: EngineConfig,
    weights: torch.Tensor,
    activations: torch.dtype,
) -> torch.Tensor:
    """One tensor for all layers, so that copying a prefix is one operation; layers get views of
    it."""
    modules = [
        module
        for layer in model.base_model.layers
        for module in layer.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "num_key_value_groups")
    ]
    sizes = {(m.config.num_key_value_heads, m.head_dim) for m in modules}
    if len(modules) != len(model.base_model.layers) or len(sizes) != 1:
        raise UnsupportedModelError(model.config.model_type, "its attention modules are not known")
    heads, head_size = sizes.pop()
    # One slot more than sequences: padding rows of a batch, and probes, write there.
    shape = (len(modules), 2, config.max_sequences + 1, heads, config.max_context, head_size)
    slots = reserve(shape, activations, weights.device)
    for module, (keys, values) in zip(modules, slots, strict=True):
        module.slot_cache = SlotCache(plan, keys, values)
    return slots


def _widen(model: Any, *, keep_head: bool) -> None:
    """Keep 16-bit matrices, compute everything else in fp32: faster on CPUs, and more exact."""
    matrices = {id(m.base.weight) for m in model.modules() if isinstance(m, LoraLinear)}
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if id(parameter) not in matrices and parameter is not embedding and parameter.dim() < 2:
            parameter.data = parameter.data.float()
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and not keep_head:
        model.set_output_embeddings(WideningLinear(head))
