# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Linear layers with many adapters at once: which one a token uses is data, not code.

The active adapters share one pool of rank rows per layer: A is [rows, inputs], B is [rows,
outputs], an adapter of rank r owns r rows, the same in every layer. So ranks may differ, and
loading an adapter is copying rows. The scale is folded into B. Slot 0 owns no rows: it is the base
model.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from service.engine.cpu_linear import widening_linear


@dataclass
class LoraStep:
    """Which adapters the packed tokens of the running step use; shared by all layers."""

    groups: list[tuple[torch.Tensor | slice, slice]] = field(default_factory=list)
    """Without kernels: packed tokens and the rank rows of their adapter."""
    token_slots: torch.Tensor | None = None
    """With kernels: the LoRA slot of every packed token."""
    kernels: "object | None" = None
    """How a GPU applies them (`service.engine.kernels`)."""


class LoraLinear(nn.Module):
    """A linear layer of the base with room for adapters."""

    def __init__(self, base: nn.Linear, step: LoraStep, rows: int) -> None:
        super().__init__()
        self.base, self.step = base, step
        weight = base.weight
        # A 4-bit base keeps its adapters in the precision that it computes in.
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        kind = {"dtype": dtype, "device": weight.device}
        # Zeros from the host's allocator take no memory until an adapter is written there.
        self.a = torch.zeros((rows, base.in_features), **kind)
        self.b = torch.zeros((rows, base.out_features), **kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step.kernels is not None:
            return self.step.kernels.lora_linear(self, x)
        y = base_linear(self.base, x)
        for tokens, rows in self.step.groups:
            change = widening_linear(widening_linear(x[0, tokens], self.a[rows]), self.b[rows].t())
            y[0, tokens] += change
        return y


class WideningLinear(nn.Module):
    """A 16-bit linear layer without adapters, for fp32 activations on the CPU."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return base_linear(self.base, x)


def base_linear(base: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype == base.weight.dtype or not base.weight.is_floating_point():
        return base(x)
    return widening_linear(x, base.weight, base.bias)


def wrap_linears(
    layers: nn.Module, prefix: str, step: LoraStep, rows: int
) -> dict[str, LoraLinear]:
    """Give every linear layer below `layers` room for adapters; returns them by full name."""
    found = {}
    for name, module in list(layers.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                wrapped = LoraLinear(child, step, rows)
                setattr(module, child_name, wrapped)
                found[".".join(part for part in (prefix, name, child_name) if part)] = wrapped
    return found
