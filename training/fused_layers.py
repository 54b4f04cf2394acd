# pyright: basic
# torch's autograd functions and transformers' layers are typed too loosely for strict checking.
"""A decoder layer of the Llama kind as one autograd function that keeps next to nothing.

A step of LoRA is bound by memory traffic as much as by arithmetic: norms, casts, rotations, the
gate and the adapters' sums each read and write tensors as wide as the MLP. Here norms, rotation and
gate are one kernel each, projections with the same input share it, and the adapters are part of
the base's products. With checkpointing a layer keeps its input and what attention found; what the
backward pass needs of the rest is computed again, which leaves out attention and down's product.

Only layers whose seven projections all have a plain adapter are changed; others stay as they are.
"""

import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.fused_attention import Norm, UntilAttention
from training.fused_lora import Adapted, adapted
from training.fused_mlp import AfterAttention

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers of transformers with these names compute what `_layer_forward` does."""


def fuse_layers(model: Any) -> int:
    """Make every decoder layer that allows it one function; returns how many."""
    count = 0
    for layer in model.modules():
        if type(layer).__name__ in LAYERS and "forward" not in vars(layer) and _is_plain(layer):
            layer.forward = types.MethodType(_layer_forward, layer)
            count += 1
    return count


def _is_plain(layer: Any) -> bool:
    """Whether the layer is made as transformers makes it, all of it adapted, with frozen norms."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = [*_before(attention), attention.o_proj, *_after(mlp)]
    return (
        all(hasattr(projection, "lora_A") for projection in projections)
        and all(p.base_layer.bias is None for p in projections[3:])
        and not any(n.weight.requires_grad for n in _norms(layer))
        and getattr(mlp.config, "hidden_act", "") in ("silu", "swish")
        and not attention.attention_dropout
    )


def _norms(layer: Any) -> list[Any]:
    attention = layer.self_attn
    heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    both = (layer.input_layernorm, layer.post_attention_layernorm)
    return [norm for norm in (*both, *heads) if norm is not None]


def _before(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _after(mlp: Any) -> tuple[Any, Any, Any]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _layer_forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    attention, mlp = self.self_attn, self.mlp
    before = _adapters(_before(attention), hidden_states)
    after = _adapters((attention.o_proj, *_after(mlp)), hidden_states)
    cached = kwargs.get("past_key_values") is not None
    if not self.training or args or cached or before is None or after is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    cos, sin = (part.unsqueeze(1) for part in kwargs["position_embeddings"])
    first, second, *of_heads = (Norm.of(norm) for norm in _norms(self))
    until = UntilAttention(
        layers=before,
        norm=first,
        head_norms=of_heads,
        heads=attention.head_dim,
        cos=cos,
        sin=sin,
        attend=_attention(self, kwargs),
        keeps_graph=kwargs.get("attention_mask") is None
        and attention.config._attn_implementation == "sdpa",
    )
    rest = AfterAttention(after, second.weight, second.eps)
    adapters = [tensor for layer in (*before, *after) for tensor in (layer.a, layer.b)]
    keep = not self.gradient_checkpointing
    return FusedLayer.apply(hidden_states, until, rest, keep, *adapters)


def _adapters(modules: Sequence[Any], x: Any) -> list[Adapted] | None:
    found = [adapted(module, x) for module in modules]
    plain = [layer for layer in found if layer is not None]
    return plain if len(plain) == len(found) else None


def _attention(layer: Any, kwargs: dict[str, Any]) -> Any:
    """What transformers would call with query, key and value."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module = layer.self_attn
    eager = sys.modules[type(module).__module__].eager_attention_forward
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
    window = getattr(module, "sliding_window", None)
    if type(layer).__name__ == "MistralDecoderLayer":
        window = getattr(module.config, "sliding_window", None)
    ours = ("attention_mask", "past_key_values", "position_embeddings")
    passed = {name: value for name, value in kwargs.items() if name not in ours}

    def attend(query: Any, key: Any, value: Any) -> Any:
        mask = kwargs.get("attention_mask")
        result, _ = function(
            module,
            query,
            key,
            value,
            mask,
            dropout=0.0,
            scaling=module.scaling,
            sliding_window=window,
            **passed,
        )
        return result

    return attend


class FusedLayer(torch.autograd.Function):
    """hidden states in, hidden states out; adapters are arguments so that autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Any,
        until: UntilAttention,
        rest: AfterAttention,
        keep: bool,
        *adapters: Any,
    ) -> Any:
        attended, graph, projected = until.forward(hidden, keep=keep)
        attended = attended.reshape(-1, len_of(attended, hidden))
        result, wide = rest.forward(attended, hidden.flatten(0, -2), keep=keep)
        ctx.save_for_backward(hidden, attended, *adapters, *projected, *wide)
        ctx.parts = (until, rest, graph, len(adapters), len(projected))
        return result.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        until, rest, graph, adapters, projected = ctx.parts
        hidden, attended, *others = ctx.saved_tensors
        kept = others[adapters:]
        grad = gradients[0].reshape(-1, hidden.shape[-1])
        inward, beside, of_rest = rest.backward(
            attended, hidden.flatten(0, -2), kept[projected:], grad
        )
        inward, of_until = until.backward(
            hidden, graph, kept[:projected], inward, beside.view(hidden.shape)
        )
        return (inward, None, None, None, *of_until, *of_rest)


def len_of(attended: Any, hidden: Any) -> int:
    """Numbers a token has over all heads."""
    return attended.numel() // (hidden.numel() // hidden.shape[-1])
