# pyright: basic
# torch's autograd and transformers' attention are typed too loosely for strict checking.
"""The first half of a decoder layer, forward and backward: norm, projections, rotation, attention.

Attention itself is whatever transformers was told to use, under autograd. What its backward pass
needs besides query, key and value (for the flash kernel: its output and one number for each row
and head) is kept; those three are computed again, which costs a twelfth of computing all again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.fused_lora import Adapted, backward_linears, forward_linears
from training.pointwise import norm_backward, normalized, rotated, rotation_backward


@dataclass(frozen=True, slots=True)
class Norm:
    """A frozen RMS norm."""

    weight: Any
    eps: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """That of transformers."""
        return cls(module.weight, float(module.variance_epsilon))

    def forward(self, x: Any) -> Any:
        """The norm of x."""
        return normalized(x.flatten(0, -2), self.weight, self.eps).view(x.shape)

    def backward(self, grad: Any, x: Any, beside: Any = None) -> Any:
        """The gradient of x, plus `beside`."""
        rows = x.flatten(0, -2)
        beside = None if beside is None else beside.reshape(rows.shape)
        grad = grad.reshape(rows.shape)
        return norm_backward(grad, rows, self.weight, self.eps, beside).view(x.shape)


@dataclass(frozen=True, slots=True)
class UntilAttention:
    """The first half of a layer."""

    layers: Sequence[Adapted]
    """Query, key and value."""
    norm: Norm
    head_norms: Sequence[Norm]
    """Of query and key, where the architecture has them."""
    heads: int
    """Numbers in a head."""
    cos: Any
    sin: Any
    attend: Callable[[Any, Any, Any], Any]
    keeps_graph: bool
    """Whether what attention keeps is small."""

    def forward(self, hidden: Any, *, keep: bool) -> tuple[Any, Any, list[Any]]:
        """What the heads found, what attention left for the backward pass, what was kept.

        Args:
            hidden: The layer's input, of three dimensions.
            keep: Whether `backward` is to be spared the second computation.
        """
        projected, _ = forward_linears(self.norm.forward(hidden), self.layers)
        graph = Graph()
        attended = graph.forward(self.attend, self._turned(projected))
        if not self.keeps_graph:
            graph.forget()
        return attended, graph, list(projected) if keep else []

    def backward(
        self, hidden: Any, graph: "Graph", kept: Sequence[Any], grad: Any, beside: Any
    ) -> tuple[Any, list[Any]]:
        """Gradients of `hidden`, with `beside` added, and of A and B of each layer."""
        normed = self.norm.forward(hidden)
        if kept:
            projected, inner = kept, None
        else:
            projected, inner = forward_linears(normed, self.layers)
        turned = self._turned(projected)
        if graph.is_forgotten:
            graph.forward(self.attend, turned)
        grads = self._turned_back(projected, graph.backward(turned, grad))
        del turned
        inward, adapters = backward_linears(normed, inner, self.layers, grads)
        return self.norm.backward(inward, hidden, beside), adapters

    def _turned(self, projected: Sequence[Any]) -> list[Any]:
        """Query, key and value by heads, normed and rotated."""
        query, key, value = (self._by_heads(part) for part in projected)
        if self.head_norms:
            query, key = (
                norm.forward(part) for norm, part in zip(self.head_norms, (query, key), strict=True)
            )
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return [*(rotated(part, self.cos, self.sin) for part in (query, key)), value]

    def _turned_back(self, projected: Sequence[Any], grads: Sequence[Any]) -> list[Any]:
        query, key = (rotation_backward(grad, self.cos, self.sin) for grad in grads[:2])
        by_heads = [part.transpose(1, 2) for part in (query, key, grads[2])]
        if self.head_norms:
            by_heads[:2] = [
                norm.backward(grad, self._by_heads(part))
                for norm, grad, part in zip(
                    self.head_norms, by_heads[:2], projected[:2], strict=True
                )
            ]
        return [part.reshape(like.shape) for part, like in zip(by_heads, projected, strict=True)]

    def _by_heads(self, projected: Any) -> Any:
        return projected.view(*projected.shape[:-1], -1, self.heads)


class Graph:
    """Attention under autograd that does not hold on to its query, key and value."""

    def __init__(self) -> None:
        self._out: Any = None
        self._edges: list[Any] = []
        self._again: list[Any] = []  # shared with the hooks, which must not lead back to `self`

    @property
    def is_forgotten(self) -> bool:
        """Whether `backward` would find nothing."""
        return self._out is None

    def forget(self) -> None:
        """Let go of everything; `forward` must come before `backward`."""
        self._out, self._edges = None, []

    def forward(self, attend: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """What `attend` makes of the inputs, without a gradient of its own."""
        again = self._again
        places = [(part.untyped_storage().data_ptr(), part.shape, part.stride()) for part in inputs]

        def pack(tensor: Any) -> Any:
            place = (tensor.untyped_storage().data_ptr(), tensor.shape, tensor.stride())
            return places.index(place) if place in places else tensor

        def unpack(packed: Any) -> Any:
            return again[packed] if isinstance(packed, int) else packed

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            anchor = torch.zeros((), device=inputs[0].device, requires_grad=True)
            parts = [_Anchored.apply(part.detach(), anchor) for part in inputs]
            self._edges = [torch.autograd.graph.get_gradient_edge(part) for part in parts]
            self._out = attend(*parts)
        return self._out.detach()

    def backward(self, inputs: Sequence[Any], grad: Any) -> Any:
        """The gradients of the inputs, which are those of `forward` or equal to them."""
        self._again[:] = inputs
        try:
            return torch.autograd.grad(self._out, self._edges, grad.view_as(self._out))
        finally:
            self._again.clear()
            self.forget()


class _Anchored(torch.autograd.Function):
    """The same tensor with a place in a graph; unlike a leaf's, that place holds no data."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, anchor: Any) -> Any:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None
