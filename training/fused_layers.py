# pyright: basic
# torch's autograd functions and transformers' layers are typed too loosely for strict checking.
"""Decoder layers of the Llama kind, trained in two halves that keep next to nothing.

A step of LoRA is bound by memory traffic, not by arithmetic: norms, casts, rotations, the gate and
the adapters' sums each read and write tensors of the intermediate width. Here

- everything after attention (output projection, residual, norm, MLP, residual) is one autograd
  function. With checkpointing it keeps its two inputs, and its backward pass computes the rest
  again a few thousand tokens at a time, so the wide tensors exist for one slice only;
- query, key and value share one read of their input; norms, rotation and gate are one kernel each;
- the half before attention is checkpointed by torch as transformers asks for.

Only layers whose seven projections all have a plain adapter are changed; others stay as they are.
"""

import sys
import types
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.fused_lora import Adapted, adapted, linears, split_ranks, stacked_a
from training.pointwise import (
    Norm,
    Rotation,
    gated,
    gated_backward,
    norm_backward,
    normalized,
    normalized_into,
)

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers of transformers with these names compute what `_layer_forward` does."""

TOKENS_AT_ONCE = 8192
"""The backward pass of the MLP holds its wide tensors for so many tokens: large enough to keep
the device busy, small enough to need less memory than the kept inputs do."""


def fuse_layers(model: Any) -> int:
    """Give every decoder layer that allows it the two halves; returns how many."""
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


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _before(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _after(mlp: Any) -> tuple[Any, Any, Any]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _layer_forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    before = _adapters(_before(self.self_attn), hidden_states)
    after = _adapters((self.self_attn.o_proj, *_after(self.mlp)), hidden_states)
    cached = kwargs.get("past_key_values") is not None
    if not self.training or args or cached or before is None or after is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    first = partial(_attend, self, before, kwargs)
    checkpointing = self.gradient_checkpointing
    if checkpointing:
        attended = self._gradient_checkpointing_func(first, hidden_states)
    else:
        attended = first(hidden_states)
    return after_attention(
        attended, hidden_states, self.post_attention_layernorm, after, keep=not checkpointing
    )


def _adapters(modules: Sequence[Any], x: Any) -> list[Adapted] | None:
    found = [adapted(module, x) for module in modules]
    plain = [layer for layer in found if layer is not None]
    return plain if len(plain) == len(found) else None


def _attend(self: Any, layers: Sequence[Adapted], kwargs: dict[str, Any], hidden: Any) -> Any:
    """Norm, the three projections, rotation and attention, without the output projection."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = self.self_attn
    normed = Norm.apply(hidden, self.input_layernorm.weight, epsilon(self.input_layernorm))
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    query, key, value = (part.view(shape) for part in linears(normed, layers))
    if hasattr(attention, "q_norm"):
        query = Norm.apply(query, attention.q_norm.weight, epsilon(attention.q_norm))
        key = Norm.apply(key, attention.k_norm.weight, epsilon(attention.k_norm))
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    passed = {n: v for n, v in kwargs.items() if n not in ("attention_mask", "past_key_values")}
    cos, sin = passed.pop("position_embeddings")
    query, key = (Rotation.apply(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (query, key))
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    window = getattr(attention, "sliding_window", None)
    if type(self).__name__ == "MistralDecoderLayer":
        window = getattr(attention.config, "sliding_window", None)
    result, _ = attend(
        attention,
        query,
        key,
        value,
        kwargs.get("attention_mask"),
        dropout=0.0,
        scaling=attention.scaling,
        sliding_window=window,
        **passed,
    )
    return result.reshape(*hidden.shape[:-1], -1)


def epsilon(norm: Any) -> float:
    """What an RMS norm adds to the variance."""
    return float(norm.variance_epsilon)


def after_attention(
    attended: Any, residual: Any, norm: Any, layers: Sequence[Adapted], *, keep: bool
) -> Any:
    """residual + output projection, then that + MLP of its norm.

    Args:
        attended: What the heads found, side by side.
        residual: The layer's input.
        norm: The RMS norm before the MLP, frozen.
        layers: Output projection, gate, up and down.
        keep: Keep the wide tensors for the backward pass instead of computing them again.
    """
    adapters = [tensor for layer in layers for tensor in (layer.a, layer.b)]
    setting = (tuple(layers), norm.weight, epsilon(norm), keep)
    return AfterAttention.apply(attended, residual, setting, *adapters)


class AfterAttention(torch.autograd.Function):
    """The second half of a layer; see `after_attention`."""

    @staticmethod
    def forward(ctx: Any, attended: Any, residual: Any, setting: Any, *adapters: Any) -> Any:
        layers, weight, eps, keep = setting
        keep = keep and any(ctx.needs_input_grad)
        rows, beside = attended.flatten(0, -2), residual.flatten(0, -2)
        result = torch.empty_like(beside)
        side = matrices(layers, rows.dtype)
        kept: list[Any] = []
        for part in _slices(len(rows), len(rows) if keep else TOKENS_AT_ONCE):
            out = side.add_output(rows[part], beside[part], result[part])
            kept = [out.clone()] if keep else []
            _, _, both = side.open(out, weight, eps)
            kept += [both] if keep else []
            inside = gated(*both.chunk(2, dim=1))
            out.addmm_(inside, side.down.T)
            out.addmm_(inside @ side.a_down.T, side.b_down.T)
        ctx.save_for_backward(attended, residual, weight, *kept, *adapters)
        ctx.setting = (layers, eps, keep)
        return result.view(residual.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        layers, eps, keep = ctx.setting
        attended, residual, weight, *rest = ctx.saved_tensors
        rows, beside = attended.flatten(0, -2), residual.flatten(0, -2)
        grads = gradients[0].reshape(beside.shape)
        grad_rows, grad_beside = torch.empty_like(rows), torch.empty_like(beside)
        side = matrices(layers, rows.dtype)
        sums = [[_sum_of(layer.a), _sum_of(layer.b)] for layer in layers]
        for part in _slices(len(rows), len(rows) if keep else TOKENS_AT_ONCE):
            grad = grads[part]
            if keep:
                middle, both = rest[:2]
                normed = normalized(middle, weight, eps)
                inner = normed @ side.a_open.T
            else:
                middle = side.add_output(rows[part], beside[part], torch.empty_like(grad))
                normed, inner, both = side.open(middle, weight, eps)

            inside, through = side.back_to_gate(grad)
            gated_backward(*both.chunk(2, dim=1), inside)
            sums[3][0] += through.T @ inside
            sums[3][1] += grad.T @ (inside @ side.a_down.T)
            del inside

            inward, through = side.back_to_norm(both)
            for index, grad_a in enumerate(split_ranks(through.T @ normed, layers[1:3], 0), 1):
                sums[index][0] += grad_a
            sums[1][1] += both[:, : side.width].T @ inner[:, : side.ranks[1]]
            sums[2][1] += both[:, side.width :].T @ inner[:, side.ranks[1] :]
            del both
            inward = norm_backward(inward, middle, weight, eps, grad)
            grad_beside[part] = inward

            through = inward @ side.b_output
            sums[0][0] += through.T @ rows[part]
            sums[0][1] += inward.T @ (rows[part] @ side.a_output.T)
            torch.mm(inward, side.output, out=grad_rows[part]).addmm_(through, side.a_output)
        result: list[Any] = []
        for layer, (grad_a, grad_b) in zip(layers, sums, strict=True):
            result += [grad_a.to(layer.a.dtype), grad_b.mul_(layer.scale).to(layer.b.dtype)]
        return (grad_rows.view(attended.shape), grad_beside.view(residual.shape), None, *result)


class Matrices:
    """All that the second half multiplies by, in the type that it computes in."""

    def __init__(self, layers: Sequence[Adapted], dtype: Any) -> None:
        self.output, self.gate, self.up, self.down = (layer.weight(dtype) for layer in layers)
        self.b_output, self.b_gate, self.b_up, self.b_down = (la.scaled_b(dtype) for la in layers)
        self.a_output = layers[0].a.to(dtype)
        self.a_open = stacked_a(layers[1:3], dtype)
        self.a_down = layers[3].a.to(dtype)
        self.ranks = [layer.a.shape[0] for layer in layers]
        self.width = len(self.gate)

    def add_output(self, rows: Any, beside: Any, into: Any) -> Any:
        """The residual plus the output projection, in the buffer `into`."""
        into.copy_(beside)
        into.addmm_(rows, self.output.T)
        return into.addmm_(rows @ self.a_output.T, self.b_output.T)

    def open(self, x: Any, weight: Any, eps: float) -> tuple[Any, Any, Any]:
        """The norm of x, what both A make of it, and gate and up side by side."""
        normed = normalized(x, weight, eps)
        inner = normed @ self.a_open.T
        of_gate, of_up = inner.split(self.ranks[1:3], dim=1)
        both = x.new_empty(len(x), 2 * self.width)
        gate, up = both.chunk(2, dim=1)
        torch.mm(normed, self.gate.T, out=gate).addmm_(of_gate, self.b_gate.T)
        torch.mm(normed, self.up.T, out=up).addmm_(of_up, self.b_up.T)
        return normed, inner, both

    def back_to_gate(self, grad: Any) -> tuple[Any, Any]:
        """The gradient of what went into down, and of what its A made."""
        through = grad @ self.b_down
        return (grad @ self.down).addmm_(through, self.a_down), through

    def back_to_norm(self, both: Any) -> tuple[Any, Any]:
        """From gradients of gate and up: those of the norm, and of what both A made."""
        gate, up = both.chunk(2, dim=1)
        through = torch.cat([gate @ self.b_gate, up @ self.b_up], dim=1)
        return (gate @ self.gate).addmm_(up, self.up).addmm_(through, self.a_open), through


class JoinedMatrices(Matrices):
    """The adapters as further columns of the base's matrices.

    One product gives gate and up with their adapters, so the wide tensors are written once: instead
    of x·Wᵀ + (x·Aᵀ)·Bᵀ it is [x, x·Aᵀ]·[W, B]ᵀ. Likewise down's gradient.
    """

    def __init__(self, layers: Sequence[Adapted], dtype: Any) -> None:
        super().__init__(layers, dtype)
        self.inputs, self.narrow = self.gate.shape[1], sum(self.ranks[1:3])
        joined = self.gate.new_zeros(2 * self.width, _aligned(self.inputs + self.narrow))
        joined[: self.width, : self.inputs] = self.gate
        joined[self.width :, : self.inputs] = self.up
        middle = self.inputs + self.ranks[1]
        joined[: self.width, self.inputs : middle] = self.b_gate
        joined[self.width :, middle : self.inputs + self.narrow] = self.b_up
        self.joined = joined

    def open(self, x: Any, weight: Any, eps: float) -> tuple[Any, Any, Any]:
        """See `Matrices.open`."""
        wide = x.new_empty(len(x), self.joined.shape[1])
        normed, inner, rest = wide.split(
            [self.inputs, self.narrow, wide.shape[1] - self.inputs - self.narrow], dim=1
        )
        normalized_into(normed, x, weight, eps)
        torch.mm(normed, self.a_open.T, out=inner)
        rest.zero_()
        return normed, inner, wide @ self.joined.T

    def back_to_gate(self, grad: Any) -> tuple[Any, Any]:
        """See `Matrices.back_to_gate`."""
        outputs, rank = grad.shape[1], self.ranks[3]
        size = _aligned(outputs + rank)
        joined = self.down.new_zeros(size, self.down.shape[1])
        joined[:outputs], joined[outputs : outputs + rank] = self.down, self.a_down
        wide = grad.new_empty(len(grad), size)
        wide[:, :outputs] = grad
        through = torch.mm(grad, self.b_down, out=wide[:, outputs : outputs + rank])
        wide[:, outputs + rank :] = 0
        return wide @ joined, through

    def back_to_norm(self, both: Any) -> tuple[Any, Any]:
        """See `Matrices.back_to_norm`."""
        through = both @ self.joined[:, self.inputs : self.inputs + self.narrow]
        return (both @ self.joined[:, : self.inputs]).addmm_(through, self.a_open), through


matrices: type[Matrices] = JoinedMatrices
"""How gate, up and down take their adapters."""


def _aligned(columns: int) -> int:
    """Rows of whole 64 bytes: products over crooked ones are slow."""
    return -(-columns // 32) * 32


def _slices(count: int, at_once: int) -> list[slice]:
    """`count` tokens in pieces of about the same size."""
    pieces = max(1, -(-count // at_once))
    size = max(1, -(-count // pieces))
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _sum_of(parameter: Any) -> Any:
    return torch.zeros_like(
        parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False
    )
