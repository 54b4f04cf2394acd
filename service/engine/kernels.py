# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""How a GPU takes a step: our kernels as operators that torch.compile leaves alone.

What kind of step runs is not told to the compiler: the operators look it up, so that compiled
layers are traced once for all kinds. Imported only where there is a GPU, since Triton compiles for
one.
"""

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch.nn.functional import linear

from service.engine.attention import SlotCache, StepPlan
from service.engine.lora import LinearGroup
from service.engine.triton_attention import decode_attention, prompt_attention
from service.engine.triton_lora import DECODE_BLOCK, PROMPT_BLOCK, expand, open_gate, shrink

_numbers = count()
_in_use: "WeakValueDictionary[int, GpuKernels]" = WeakValueDictionary()

# The caches are written to inside, which is not declared: nothing but these operators reads them,
# in program order, and declaring it makes the compiler copy them.


@torch.library.custom_op("tracnghiem::attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int,
    kernels: int,
) -> torch.Tensor:
    step = _in_use[kernels]
    blocks, slots, positions = step.attention_blocks, step.plan.slots, step.plan.positions
    if blocks is None:
        return decode_attention(query, key, value, keys, values, slots, positions, scale, window)
    keys[slots, :, positions] = key.transpose(0, 1)
    values[slots, :, positions] = value.transpose(0, 1)
    return prompt_attention(query, keys, values, blocks, scale, window)


@_attention.register_fake
def _(query, key, value, keys, values, scale, window, kernels):
    return query.new_empty((query.shape[1], query.shape[0], query.shape[2]))


@torch.library.custom_op("tracnghiem::lora_linear", mutates_args=())
def _lora_linear(
    x: torch.Tensor,
    joined: torch.Tensor,
    bias: torch.Tensor | None,
    b: torch.Tensor,
    parts_of: torch.Tensor,
    parts: int,
    gated: bool,
    kernels: int,
) -> torch.Tensor:
    step, x, outputs = _in_use[kernels], x.contiguous(), b.shape[1]
    if step.lora_blocks is not None and step.pooled:
        wide = linear(x, joined, bias)
        y, hidden = wide[:, :outputs], wide[None, :, outputs:].unflatten(2, (parts, -1))
    else:
        y = linear(x, joined[:outputs], None if bias is None else bias[:outputs])
        if step.lora_blocks is None:
            return open_gate(y) if gated else y
        a = joined[outputs:].unflatten(0, (parts, -1))
        hidden = shrink(x, a, step.lora_blocks, step.block_tokens, step.rank_tile)
    return expand(
        hidden, y, b, step.lora_blocks, parts_of, step.block_tokens, step.rank_tile,
        pooled=step.pooled, gated=gated,
    )  # fmt: skip


@_lora_linear.register_fake
def _(x, joined, bias, b, parts_of, parts, gated, kernels):
    return x.new_empty((x.shape[0], b.shape[1] // 2 if gated else b.shape[1]))


@torch.library.custom_op("tracnghiem::add_lora", mutates_args=("y",))
def _add_lora(
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    parts_of: torch.Tensor,
    kernels: int,
) -> None:
    step = _in_use[kernels]
    if step.lora_blocks is not None:
        tiles = step.block_tokens, step.rank_tile
        hidden = shrink(x.contiguous(), a, step.lora_blocks, *tiles)
        expand(hidden, y, b, step.lora_blocks, parts_of, *tiles)


@_add_lora.register_fake
def _(x, y, a, b, parts_of, kernels):
    return None


class GpuKernels:
    """Chosen per step: how its attention and its adapters are computed."""

    def __init__(self, plan: StepPlan, rank_tile: int) -> None:
        self.plan, self.rank_tile = plan, rank_tile
        self.number = next(_numbers)
        """By which operators find this object."""
        _in_use[self.number] = self
        self.attention_blocks: torch.Tensor | None = None
        """The block table of a step with prompts; None when every token is a sequence's newest."""
        self.lora_blocks: torch.Tensor | None = None
        """The block table of all tokens, or None if the step uses no adapter."""
        self.pooled = False
        """Whether A is multiplied for the whole pool, as more outputs of the base's product: that
        reads what is not used, and launches nothing."""

    def attend(self, cache: SlotCache, query, key, value, scaling: float, window: int | None):
        return _attention(
            query[0], key[0], value[0], cache.keys, cache.values, scaling, window or 0, self.number,
        )[None]  # fmt: skip

    def lora_linear(self, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
        """The outputs of a group of layers side by side, the adapters' part included."""
        if group.joined is not None and group.weight is not None:
            if group.has_room:
                return self._lora_linear(group, x, gated=False)
            return linear(x, group.weight, group.bias)
        # 4-bit matrices cannot be joined
        y = torch.cat([base(x) for base in group.bases], dim=-1)
        if group.has_room:
            _add_lora(x[0], y[0], group.a, group.b, group.parts_of, self.number)
        return y

    def gates(self, group: LinearGroup) -> bool:
        """Whether `gated` computes an MLP's gate and up."""
        return group.joined is not None and group.has_room

    def gated(self, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of a group of those two, the adapters' part included."""
        return self._lora_linear(group, x, gated=True)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block in `lora_blocks`."""
        return DECODE_BLOCK if self.attention_blocks is None else PROMPT_BLOCK

    def _lora_linear(self, group: LinearGroup, x: torch.Tensor, *, gated: bool) -> torch.Tensor:
        return _lora_linear(
            x[0], group.joined, group.joined_bias, group.b, group.parts_of,
            len(group.sizes), gated, self.number,
        )[None]  # fmt: skip
