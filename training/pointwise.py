# pyright: basic
# torch's compiler and autograd functions are typed too loosely for strict checking.
"""Norm, rotation and gate, forward and backward: on a GPU one compiled kernel each.

Formulas are those of transformers' Llama; sums and squares are taken in at least 32 bits. None of
the norms' weights learn here.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch


def _one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled where tensors are on a GPU, called as it is elsewhere.

    Each width has a compilation of its own, so that only the number of tokens is ever a variable.
    """
    compiled: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        first = arguments[0]
        if not first.is_cuda:
            return function(*arguments)
        width = (first.ndim, first.shape[-1], first.shape[1] if first.ndim == 4 else 0)
        if width not in compiled:
            compiled[width] = torch.compile(_copy(function, len(compiled)))
        return compiled[width](*(a.detach() if torch.is_tensor(a) else a for a in arguments))

    return call


def _copy(function: Any, number: int) -> Any:
    """The same function under another name: the compiler remembers shapes by name and place."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return types.FunctionType(code, function.__globals__, code.co_name)


def _wide(x: Any) -> Any:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@_one_kernel
def normalized(x: Any, weight: Any, eps: float) -> Any:
    """The RMS norm of each row, times the weight."""
    wide = _wide(x)
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@_one_kernel
def normalized_into(into: Any, x: Any, weight: Any, eps: float) -> None:
    """The same, written into a part of a wider tensor."""
    wide = _wide(x)
    rate = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    into.copy_(weight * (wide * rate).to(x.dtype))


@_one_kernel
def norm_backward(grad: Any, x: Any, weight: Any, eps: float, beside: Any) -> Any:
    """The gradient of x through its norm, plus `beside`, the one that went past the norm."""
    wide, through = _wide(x), _wide(grad) * _wide(weight)
    rate = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit = wide * rate
    inward = rate * (through - unit * (through * unit).mean(-1, keepdim=True))
    return (inward if beside is None else inward + beside).to(x.dtype)


@_one_kernel
def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions over halves of the last dimension."""
    one, two = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-two, one], dim=-1) * sin).to(x.dtype)


@_one_kernel
def rotation_backward(grad: Any, cos: Any, sin: Any) -> Any:
    """The same turn backwards."""
    one, two = (grad * sin).chunk(2, dim=-1)
    return (grad * cos + torch.cat([two, -one], dim=-1)).to(grad.dtype)


@_one_kernel
def gated(gate: Any, up: Any) -> Any:
    """SiLU of the gate, times the other."""
    wide = _wide(gate)
    return (wide * torch.sigmoid(wide) * up).to(gate.dtype)


@_one_kernel
def gated_backward(gate: Any, up: Any, grad: Any) -> None:
    """Overwrite gate and up with their gradients, and the gradient with what the gate gave."""
    wide, other, out = _wide(gate), _wide(up), _wide(grad)
    open_share = torch.sigmoid(wide)
    passed = wide * open_share
    of_gate = out * other * open_share * (1 + wide * (1 - open_share))
    of_up, inside = out * passed, passed * other  # all before the first is overwritten
    gate.copy_(of_gate)
    up.copy_(of_up)
    grad.copy_(inside)
