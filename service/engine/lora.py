# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Linear layers with many adapters at once: which one a token uses is data, not code.

The active adapters share one pool of rank rows per layer: A is [rows, inputs], B is [rows,
outputs], an adapter of rank r owns r rows, the same in every layer. So ranks may differ, and
loading an adapter is copying rows. The scale is folded into B. Slot 0 owns no rows: it is the base.

Layers that read the same input (q, k and v; gate and up) keep their matrices in one tensor each, so
that a GPU computes them in one product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from service.engine.cpu_int8 import Int8Linear
from service.engine.cpu_linear import widening_linear
from service.engine.memory import reserve

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class LoraUse:
    """Packed tokens that use one adapter."""

    tokens: slice
    rows: slice
    """Of the pool: the adapter's."""
    apart: bool
    """Whether every token is computed by itself, as if it were alone in the step."""


@dataclass
class LoraStep:
    """Which adapters the packed tokens of the running step use; shared by all layers."""

    uses: list[LoraUse] = field(default_factory=list)
    """Without kernels: what is computed together, so that it does not depend on the rest."""
    kernels: Any = None
    """How a GPU applies them (`service.engine.kernels`)."""


class LinearGroup:
    """Linear layers of one input, with the pools of their adapters."""

    def __init__(self, bases: list[nn.Linear], rows: int, *, joined: bool, name: str = "") -> None:
        first = bases[0]
        self.name = name
        self.sizes = [base.out_features for base in bases]
        # A 4-bit base keeps its adapters in the precision that it computes in; a CPU computes in
        # fp32, where a product of one row with a few ranks is several times faster than in bf16.
        dtype = first.weight.dtype if first.weight.is_floating_point() else torch.bfloat16
        if first.weight.device.type == "cpu":
            dtype = torch.float32
        kind = {"dtype": dtype, "device": first.weight.device}
        if first.weight.device.type == "cpu":
            # The rows of one adapter side by side: one product serves all layers.
            self.a = reserve((rows, len(bases), first.in_features), **kind).transpose(0, 1)
        elif not joined:
            self.a = reserve((len(bases), rows, first.in_features), **kind)
        self.b = reserve((rows, sum(self.sizes)), **kind)
        self.bases = bases
        self.joined: torch.Tensor | None = None
        """[outputs + parts * rows, inputs]: the base matrices, then the pool's A of each."""
        self.joined_bias: torch.Tensor | None = None
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        self.parts_of: torch.Tensor | None = None
        self.int8: Int8Linear | None = None
        if joined:
            self._join(rows)
        self._input: torch.Tensor | None = None
        self._parts: tuple[torch.Tensor, ...] = ()

    @property
    def has_room(self) -> bool:
        """Whether there are rows for adapters."""
        return len(self.b) > 0

    def _join(self, rows: int) -> None:
        """Put the base matrices and the pools of A side by side; the layers keep views of them."""
        outputs, parts = sum(self.sizes), len(self.bases)
        inputs = self.bases[0].in_features
        matrices = [base.weight.data for base in self.bases]
        self.joined = torch.cat([*matrices, matrices[0].new_zeros((parts * rows, inputs))])
        self.weight, self.a = self.joined[:outputs], self.joined[outputs:].view(parts, rows, inputs)
        for base, part in zip(self.bases, self.weight.split(self.sizes), strict=True):
            base.weight.data = part
        if self.bases[0].bias is not None:
            biases = [base.bias.data for base in self.bases]
            self.joined_bias = torch.cat([*biases, biases[0].new_zeros(parts * rows)])
            self.bias = self.joined_bias[:outputs]

    def round_to_int8(self, joined: Int8Linear) -> None:
        """Compute the base's part with these 8-bit weights; frees the 16-bit ones."""
        self.int8, self.bases = joined, []

    def compute(self, step: LoraStep, x: torch.Tensor) -> torch.Tensor:
        """All layers side by side, with 8-bit weights."""
        assert self.int8 is not None
        y = self.int8(x)
        if step.uses:
            parts = y[0].split(self.sizes, dim=-1)
            for use in step.uses:
                add_changes(parts, x[0], self.a, self.b.split(self.sizes, dim=-1), use)
        return y

    def part(
        self, index: int, x: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The output of one layer; the first that is asked computes all of them."""
        if index == 0 or self._input is not x:
            self._input, self._parts = x, compute(x).split(self.sizes, dim=-1)
        part = self._parts[index]
        if index == len(self.sizes) - 1:
            self._input, self._parts = None, ()
        return part


class LoraLinear(nn.Module):
    """A linear layer of the base with room for adapters."""

    def __init__(self, base: nn.Linear, step: LoraStep, group: LinearGroup, index: int) -> None:
        super().__init__()
        self.base: Any = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.step, self.group, self.index = step, group, index
        self.a = group.a[index]
        start = sum(group.sizes[:index])
        self.b = group.b[:, start : start + base.out_features]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step.kernels is not None:
            return self.group.part(
                self.index, x, partial(self.step.kernels.lora_linear, self.group)
            )
        if self.group.int8 is not None:
            return self.group.part(self.index, x, partial(self.group.compute, self.step))
        y = base_linear(self.base, x)
        for use in self.step.uses:
            add_changes((y[0],), x[0], self.a[None], (self.b,), use)
        return y


class GatedMlp(nn.Module):
    """An MLP of gate, up and down whose gate opens with SiLU; a GPU adds the adapters' part and
    opens the gate in one kernel."""

    def __init__(self, mlp: Any, step: LoraStep) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.step = mlp.act_fn, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = self.step.kernels
        if kernels is not None and kernels.gates(self.gate_proj.group):
            return self.down_proj(kernels.gated(self.gate_proj.group, x))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def gate_mlps(layers: nn.Module, step: LoraStep) -> None:
    """Replace the MLPs that a `GatedMlp` can stand for."""
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            children = dict(child.named_children())
            is_gated = children.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}
            if is_gated and isinstance(children["act_fn"], nn.SiLU | SiLUActivation):
                gate, up = children["gate_proj"], children["up_proj"]
                if isinstance(gate, LoraLinear) and gate.group is getattr(up, "group", None):
                    setattr(module, name, GatedMlp(child, step))


def add_changes(
    outputs: Sequence[torch.Tensor],
    inputs: torch.Tensor,
    a: torch.Tensor,
    b: Sequence[torch.Tensor],
    use: LoraUse,
) -> None:
    """Add an adapter's changes to the outputs of layers of one input.

    A product of many rows sums in another order than a product of one, so what is computed together
    has to be the same whatever else a step computes: `use` says what that is.
    """
    x = inputs[use.tokens]
    count, rank = len(x), use.rows.stop - use.rows.start
    a = a[:, use.rows].transpose(0, 1).reshape(rank * len(b), -1).t()
    if use.apart:
        inner = torch.bmm(x[:, None], a.expand(count, -1, -1)).view(count, 1, rank, len(b))
        for index, (y, matrix) in enumerate(zip(outputs, b, strict=True)):
            matrices = matrix[use.rows].expand(count, -1, -1)
            y[use.tokens] += torch.bmm(inner[..., index], matrices)[:, 0]
    else:
        inner = (x @ a).view(count, rank, len(b))
        for index, (y, matrix) in enumerate(zip(outputs, b, strict=True)):
            y[use.tokens].addmm_(inner[..., index], matrix[use.rows])


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


def base_linear(base: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype == base.weight.dtype or not base.weight.is_floating_point():
        return base(x)
    return widening_linear(x, base.weight, base.bias)


def wrap_linears(
    layers: nn.Module, prefix: str, step: LoraStep, rows: int
) -> dict[str, LoraLinear]:
    """Give every linear layer below `layers` room for adapters; returns them by full name."""
    found = {}
    for name, module in list(layers.named_modules()):
        linears = {n: c for n, c in module.named_children() if isinstance(c, nn.Linear)}
        for names in _groups(linears):
            bases = [linears[n] for n in names]
            plain = all(type(base) is nn.Linear for base in bases)
            joined = plain and bases[0].weight.is_cuda
            full = [".".join(part for part in (prefix, name, child) if part) for child in names]
            group = LinearGroup(bases, rows, joined=joined, name=full[0])
            for index, child in enumerate(names):
                wrapped = LoraLinear(bases[index], step, group, index)
                setattr(module, child, wrapped)
                found[full[index]] = wrapped
    return found


def _groups(linears: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Siblings that read the same input, and every other layer alone."""
    groups: list[tuple[str, ...]] = []
    for names in _SIBLINGS:
        if not all(name in linears for name in names):
            continue
        kinds = {(linears[n].in_features, linears[n].bias is None) for n in names}
        # Blocks of the kernels must not span two layers.
        if len(kinds) == 1 and all(linears[n].out_features % 128 == 0 for n in names):
            groups.append(names)
    grouped = {name for names in groups for name in names}
    return groups + [(name,) for name in linears if name not in grouped]
