# pyright: basic
# peft's layers and torch's tensors are typed too loosely for strict checking.
"""What follows attention in a decoder layer, forward and backward, by hand.

Output projection, residual, norm, MLP, residual. The backward pass computes gate and up again a few
thousand tokens at a time, so tensors of the intermediate width exist for one slice only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.fused_lora import Adapted, split_ranks, stacked_a
from training.pointwise import (
    gated,
    gated_backward,
    norm_backward,
    normalized,
    normalized_into,
)

TOKENS_AT_ONCE = 8192
"""The wide tensors exist for so many tokens: large enough to keep the device busy, small enough to
need less memory than what is kept between the passes."""


@dataclass(frozen=True, slots=True)
class AfterAttention:
    """The second half of a layer."""

    layers: Sequence[Adapted]
    """Output projection, gate, up and down."""
    weight: Any
    """Of the norm before the MLP."""
    eps: float

    def forward(self, attended: Any, residual: Any, *, keep: bool) -> tuple[Any, list[Any]]:
        """The layer's output, and if asked the wide tensors for the backward pass.

        Args:
            attended: What the heads found, a row for each token.
            residual: The layer's input, likewise.
            keep: Whether `backward` is to be spared the second computation.
        """
        result = torch.empty_like(residual)
        side = matrices(self.layers, residual.dtype)
        kept: list[Any] = []
        for part in _slices(len(result), len(result) if keep else TOKENS_AT_ONCE):
            out = side.add_output(attended[part], residual[part], result[part])
            kept = [out.clone()] if keep else []
            _, _, gate, up = side.open(out, self.weight, self.eps)
            kept += [gate, up] if keep else []
            inside = gated(gate, up)
            out.addmm_(inside, side.down.T)
            out.addmm_(inside @ side.a_down.T, side.b_down.T)
        return result, kept

    def backward(
        self, attended: Any, residual: Any, kept: Sequence[Any], grads: Any
    ) -> tuple[Any, Any, list[Any]]:
        """Gradients of `attended`, of `residual`, and of A and B of each layer.

        Overwrites what was kept.
        """
        grad_attended, grad_residual = torch.empty_like(attended), torch.empty_like(residual)
        side = matrices(self.layers, residual.dtype)
        sums = [[_sum_of(layer.a), _sum_of(layer.b)] for layer in self.layers]
        for part in _slices(len(grads), len(grads) if kept else TOKENS_AT_ONCE):
            grad, rows = grads[part], attended[part]
            if kept:
                middle, gate, up = kept
                normed = normalized(middle, self.weight, self.eps)
                inner = normed @ side.a_open.T
            else:
                middle = side.add_output(rows, residual[part], torch.empty_like(grad))
                normed, inner, gate, up = side.open(middle, self.weight, self.eps)

            inside, through = side.back_to_gate(grad)
            gated_backward(gate, up, inside)
            sums[3][0] += through.T @ inside
            sums[3][1] += grad.T @ (inside @ side.a_down.T)
            del inside

            inward, through = side.back_to_norm(gate, up)
            for index, grad_a in enumerate(split_ranks(through.T @ normed, self.layers[1:3], 0), 1):
                sums[index][0] += grad_a
            sums[1][1] += gate.T @ inner[:, : side.ranks[1]]
            sums[2][1] += up.T @ inner[:, side.ranks[1] :]
            del gate, up
            inward = norm_backward(inward, middle, self.weight, self.eps, grad)
            grad_residual[part] = inward

            through = inward @ side.b_output
            sums[0][0] += through.T @ rows
            sums[0][1] += inward.T @ (rows @ side.a_output.T)
            torch.mm(inward, side.output, out=grad_attended[part]).addmm_(through, side.a_output)
        adapters: list[Any] = []
        for layer, (grad_a, grad_b) in zip(self.layers, sums, strict=True):
            adapters += [grad_a.to(layer.a.dtype), grad_b.mul_(layer.scale).to(layer.b.dtype)]
        return grad_attended, grad_residual, adapters


class Matrices:
    """All that the second half multiplies by, in the type that it computes in."""

    def __init__(self, layers: Sequence[Adapted], dtype: Any) -> None:
        self.output, self.gate, self.up, self.down = (layer.weight(dtype) for layer in layers)
        self.b_output, self.b_gate, self.b_up, self.b_down = (la.scaled_b(dtype) for la in layers)
        self.a_output = layers[0].a.to(dtype)
        self.a_open = stacked_a(layers[1:3], dtype)
        self.a_down = layers[3].a.to(dtype)
        self.ranks = [layer.a.shape[0] for layer in layers]

    def add_output(self, rows: Any, beside: Any, into: Any) -> Any:
        """The residual plus the output projection, in the buffer `into`."""
        into.copy_(beside)
        into.addmm_(rows, self.output.T)
        return into.addmm_(rows @ self.a_output.T, self.b_output.T)

    def open(self, x: Any, weight: Any, eps: float) -> tuple[Any, Any, Any, Any]:
        """The norm of x, what both A make of it, gate and up."""
        normed = normalized(x, weight, eps)
        inner = normed @ self.a_open.T
        of_gate, of_up = inner.split(self.ranks[1:3], dim=1)
        gate = (normed @ self.gate.T).addmm_(of_gate, self.b_gate.T)
        up = (normed @ self.up.T).addmm_(of_up, self.b_up.T)
        return normed, inner, gate, up

    def back_to_gate(self, grad: Any) -> tuple[Any, Any]:
        """The gradient of what went into down, and of what its A made."""
        through = grad @ self.b_down
        return (grad @ self.down).addmm_(through, self.a_down), through

    def back_to_norm(self, gate: Any, up: Any) -> tuple[Any, Any]:
        """From gradients of gate and up: those of the norm, and of what both A made."""
        through = torch.cat([gate @ self.b_gate, up @ self.b_up], dim=1)
        return (gate @ self.gate).addmm_(up, self.up).addmm_(through, self.a_open), through


class JoinedMatrices(Matrices):
    """The adapters as further columns of the base's matrices.

    One product gives gate or up with its adapter, so the wide tensors are written once: instead of
    x·Wᵀ + (x·Aᵀ)·Bᵀ it is [x, x·Aᵀ]·[W, B]ᵀ. Likewise down's gradient.
    """

    def __init__(self, layers: Sequence[Adapted], dtype: Any) -> None:
        super().__init__(layers, dtype)
        self.inputs, self.narrow = self.gate.shape[1], sum(self.ranks[1:3])
        self.joined_gate, self.joined_up = self.gate.new_zeros(
            2, len(self.gate), _aligned(self.inputs + self.narrow)
        )
        middle, end = self.inputs + self.ranks[1], self.inputs + self.narrow
        self.joined_gate[:, : self.inputs], self.joined_up[:, : self.inputs] = self.gate, self.up
        self.joined_gate[:, self.inputs : middle] = self.b_gate
        self.joined_up[:, middle:end] = self.b_up

    def open(self, x: Any, weight: Any, eps: float) -> tuple[Any, Any, Any, Any]:
        """See `Matrices.open`."""
        wide = x.new_empty(len(x), self.joined_up.shape[1])
        normed, inner, rest = wide.split(
            [self.inputs, self.narrow, wide.shape[1] - self.inputs - self.narrow], dim=1
        )
        normalized_into(normed, x, weight, eps)
        torch.mm(normed, self.a_open.T, out=inner)
        rest.zero_()
        return normed, inner, wide @ self.joined_gate.T, wide @ self.joined_up.T

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
