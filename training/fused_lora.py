# pyright: basic
# torch's autograd functions and peft's layers are typed too loosely for strict checking.
"""Linear layers with an adapter as one autograd function: fewer kernels, less memory, same result.

PEFT casts the input to 32 bits for every adapted layer, and scales and adds in kernels of their
own. Here the adapter's product is added by the matrix product itself, and one copy of the input is
kept. Anything unusual (dropout, DoRA, several adapters, merged or mixed batches) takes PEFT's path.
"""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Adapted:
    """A frozen linear layer and the one adapter that is active on it."""

    base: Any
    a: Any
    b: Any
    scale: float

    def weight(self, dtype: Any) -> Any:
        """The base's matrix; of a 4-bit base a copy that lives as long as the caller holds it."""
        weight = self.base.weight
        if type(self.base) is torch.nn.Linear:
            return weight
        import bitsandbytes.functional

        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)

    def scaled_b(self, dtype: Any) -> Any:
        """B times the scale; rounded after the product, so nothing is lost to the scale."""
        return (self.b * self.scale).to(dtype)


class AdaptedLinears(torch.autograd.Function):
    """y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ for one layer, or several that share their input.

    `apply(x, layers, *[a and b of each layer])` returns a tuple; the adapters are arguments so that
    autograd sees them.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, layers: Sequence[Adapted], *adapters: Any) -> Any:
        results, inner = forward_linears(x, layers)
        ctx.save_for_backward(x, inner, *adapters)
        ctx.layers = layers
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, inner, *_ = ctx.saved_tensors
        needed = ctx.needs_input_grad[0]
        grad_x, adapters = backward_linears(x, inner, ctx.layers, gradients, of_x=needed)
        return (grad_x, None, *adapters)


def forward_linears(x: Any, layers: Sequence[Adapted]) -> tuple[tuple[Any, ...], Any]:
    """The outputs of layers that share their input, and what all their A made of it."""
    rows = x.reshape(-1, x.shape[-1])
    inner = rows @ stacked_a(layers, x.dtype).T
    results = []
    for layer, columns in zip(layers, split_ranks(inner, layers), strict=True):
        bias = layer.base.bias
        bias = None if bias is None else bias.to(x.dtype)
        result = torch.nn.functional.linear(rows, layer.weight(x.dtype), bias)
        result.addmm_(columns, layer.scaled_b(x.dtype).T)
        results.append(result.view(*x.shape[:-1], -1))
    return tuple(results), inner


def backward_linears(
    x: Any, inner: Any, layers: Sequence[Adapted], gradients: Sequence[Any], *, of_x: bool = True
) -> tuple[Any, list[Any]]:
    """Gradients of the shared input and of A and B of each layer; `inner` may be None."""
    rows = x.reshape(-1, x.shape[-1])
    outs = [grad.reshape(rows.shape[0], -1) for grad in gradients]
    if inner is None:
        inner = rows @ stacked_a(layers, x.dtype).T
    grad_x, through = None, []
    for layer, out in zip(layers, outs, strict=True):
        through.append(out @ layer.scaled_b(x.dtype))
        if of_x:
            weight = layer.weight(x.dtype)
            grad_x = out @ weight if grad_x is None else grad_x.addmm_(out, weight)
    stacked = through[0] if len(through) == 1 else torch.cat(through, dim=1)
    if grad_x is not None:
        grad_x = grad_x.addmm_(stacked, stacked_a(layers, x.dtype)).view(x.shape)
    of_a = split_ranks(stacked.T @ rows, layers, dim=0)
    of_b = [out.T @ part for out, part in zip(outs, split_ranks(inner, layers), strict=True)]
    result: list[Any] = []
    for layer, grad_a, grad_b in zip(layers, of_a, of_b, strict=True):
        result += [grad_a.to(layer.a.dtype), grad_b.to(layer.b.dtype).mul_(layer.scale)]
    return grad_x, result


def stacked_a(layers: Sequence[Adapted], dtype: Any) -> Any:
    """The A of layers that share their input, on top of each other: one product for all."""
    if len(layers) == 1:
        return layers[0].a.to(dtype)
    return torch.cat([layer.a.to(dtype) for layer in layers])


def split_ranks(stacked: Any, layers: Sequence[Adapted], dim: int = 1) -> Any:
    """Each layer's part of what `stacked_a` was multiplied into."""
    return stacked.split([layer.a.shape[0] for layer in layers], dim=dim)


def linears(x: Any, layers: Sequence[Adapted]) -> Any:
    """The outputs of adapted layers that share the input `x`."""
    adapters = [tensor for layer in layers for tensor in (layer.a, layer.b)]
    return AdaptedLinears.apply(x, tuple(layers), *adapters)


def adapted(module: Any, x: Any) -> Adapted | None:
    """The layer as `linears` takes it, or None where only PEFT's own path is right."""
    if not isinstance(module, _kinds()) or len(module.active_adapters) != 1:
        return None
    name, base = module.active_adapters[0], module.base_layer
    if (
        name not in module.lora_A
        or module.disable_adapters
        or module.merged
        or name in module.lora_variant
        or module.lora_bias.get(name, False)
        or not isinstance(module.lora_dropout[name], torch.nn.Identity)
        or base.weight.requires_grad
        or _cast_by_autocast(x)
    ):
        return None
    if not _computes_in(base, x.dtype):
        return None
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return Adapted(base, a, b, module.scaling[name])


def fuse(model: Any) -> int:
    """Give every adapted linear layer of a PEFT model the fused path; returns how many."""
    count = 0
    for module in model.modules():
        if isinstance(module, _kinds()) and not hasattr(module, "_peft_forward"):
            module._peft_forward = module.forward
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    layer = None if args or kwargs else adapted(self, x)
    if layer is None:
        return self._peft_forward(x, *args, **kwargs)
    return linears(x, [layer])[0]


def _kinds() -> tuple[type, ...]:
    import peft.tuners.lora.layer as peft_layers

    try:
        import peft.tuners.lora.bnb as peft_bnb
    except ImportError:
        return (peft_layers.Linear,)
    four_bits = getattr(peft_bnb, "Linear4bit", None)
    return (peft_layers.Linear,) if four_bits is None else (peft_layers.Linear, four_bits)


def _computes_in(base: Any, dtype: Any) -> bool:
    """Whether the base's own product would be in that type, with weights that we can read."""
    if type(base) is torch.nn.Linear:
        return base.weight.dtype == dtype
    state = getattr(base.weight, "quant_state", None)
    return (
        state is not None
        and state.dtype == dtype
        and base.compute_dtype in (None, dtype)
        and not getattr(state, "packing_format_for_cpu", False)
    )


def _cast_by_autocast(x: Any) -> bool:
    """Whether autocast would compute in another type than the input's."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype
