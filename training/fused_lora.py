# pyright: basic
# torch's autograd functions and peft's layers are typed too loosely for strict checking.
"""Linear layers with an adapter as one autograd function: fewer kernels, less memory, same result.

PEFT casts the input for every adapted layer, and scales and adds in kernels of their own. Here the
adapter's product is added by the matrix product itself, and one copy of the input is kept.
Anything unusual (dropout, DoRA, several adapters, merged or mixed batches) takes PEFT's own path.
"""

import types
from typing import Any

import torch


class _FusedLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ with W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ low_a.T
        result = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        result.addmm_(inner, low_b.T, alpha=scale)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, inner, weight, a, b = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        out = gradients[0].reshape(rows.shape[0], -1)
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        through_b = out @ low_b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = out @ weight
            grad_x.addmm_(through_b, low_a, alpha=ctx.scale)
            grad_x = grad_x.view(x.shape)
        grad_a = (through_b.T @ rows).to(a.dtype).mul_(ctx.scale)
        grad_b = (out.T @ inner).to(b.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


class _AddedLora(torch.autograd.Function):
    """base + scale·(x·Aᵀ)·Bᵀ, for bases that compute their own product, such as 4-bit ones."""

    @staticmethod
    def forward(ctx: Any, base: Any, x: Any, a: Any, b: Any, scale: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.to(x.dtype).T
        result = torch.addmm(base.reshape(rows.shape[0], -1), inner, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, inner, a, b)
        ctx.scale = scale
        return result.view(base.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, inner, a, b = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        out = gradients[0].reshape(rows.shape[0], -1)
        through_b = out @ b.to(x.dtype)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = ((through_b @ a.to(x.dtype)) * ctx.scale).view(x.shape)
        grad_a = (through_b.T @ rows).to(a.dtype).mul_(ctx.scale)
        grad_b = (out.T @ inner).to(b.dtype).mul_(ctx.scale)
        return gradients[0], grad_x, grad_a, grad_b, None


def fuse(model: Any) -> int:
    """Give every adapted linear layer of a PEFT model the fused path; returns how many."""
    import peft.tuners.lora.layer as peft_layers

    kinds: tuple[type, ...] = (peft_layers.Linear,)
    try:
        import peft.tuners.lora.bnb as peft_bnb

        kinds += tuple(k for k in (getattr(peft_bnb, "Linear4bit", None),) if k is not None)
    except ImportError:
        pass
    count = 0
    for module in model.modules():
        if isinstance(module, kinds) and not hasattr(module, "_peft_forward"):
            module._peft_forward = module.forward
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
    base = self.base_layer
    if (
        args
        or kwargs
        or name not in self.lora_A
        or self.disable_adapters
        or self.merged
        or name in self.lora_variant
        or self.lora_bias.get(name, False)
        or not isinstance(self.lora_dropout[name], torch.nn.Identity)
        or _cast_by_autocast(x)
    ):
        return self._peft_forward(x, *args, **kwargs)
    a, b, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    if type(base) is torch.nn.Linear and base.weight.dtype == x.dtype:
        if base.weight.requires_grad:
            return self._peft_forward(x)
        return _FusedLinear.apply(x, base.weight, base.bias, a, b, scale)
    result = base(x)
    if result.dtype != x.dtype:
        return self._peft_forward(x)
    return _AddedLora.apply(result, x, a, b, scale)


def _cast_by_autocast(x: Any) -> bool:
    """Whether autocast would compute in another type than the input's."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype
