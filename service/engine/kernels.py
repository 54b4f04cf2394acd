# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""How a GPU takes a step: our kernels as operators that torch.compile leaves alone.

Imported only where there is a GPU, since Triton compiles for one.
"""

import torch
from torch.nn.functional import linear

from service.engine.attention import SlotCache
from service.engine.lora import LinearGroup
from service.engine.triton_attention import decode_attention, prompt_attention
from service.engine.triton_lora import DECODE_BLOCK, PROMPT_BLOCK, expand, shrink

# The caches are written to inside, which is not declared: nothing but these operators reads them,
# in program order, and declaring it makes the compiler copy them.


@torch.library.custom_op("tracnghiem::decode_attention", mutates_args=())
def _decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    return decode_attention(query, key, value, keys, values, slots, positions, scale, window)


@torch.library.custom_op("tracnghiem::prompt_attention", mutates_args=())
def _prompt_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    blocks: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    keys[slots, :, positions] = key.transpose(0, 1)
    values[slots, :, positions] = value.transpose(0, 1)
    return prompt_attention(query, keys, values, blocks, scale, window)


@_decode_attention.register_fake
def _(query, key, value, keys, values, slots, positions, scale, window):
    return query.new_empty((query.shape[1], query.shape[0], query.shape[2]))


@_prompt_attention.register_fake
def _(query, key, value, keys, values, slots, positions, blocks, scale, window):
    return query.new_empty((query.shape[1], query.shape[0], query.shape[2]))


@torch.library.custom_op("tracnghiem::lora_linear", mutates_args=())
def _lora_linear(
    x: torch.Tensor,
    joined: torch.Tensor,
    bias: torch.Tensor | None,
    b: torch.Tensor,
    blocks: torch.Tensor,
    parts_of: torch.Tensor,
    parts: int,
    block_tokens: int,
    pooled: bool,
    gated: bool,
) -> torch.Tensor:
    x, outputs = x.contiguous(), b.shape[1]
    if pooled:
        y = linear(x, joined, bias)
        y, hidden = y[:, :outputs], y[None, :, outputs:].unflatten(2, (parts, -1))
    else:
        hidden = shrink(x, joined[outputs:].unflatten(0, (parts, -1)), blocks, block_tokens)
        y = linear(x, joined[:outputs], None if bias is None else bias[:outputs])
    return expand(hidden, y, b, blocks, parts_of, block_tokens, pooled=pooled, gated=gated)


@_lora_linear.register_fake
def _(x, joined, bias, b, blocks, parts_of, parts, block_tokens, pooled, gated):
    outputs = b.shape[1]
    if gated:
        return x.new_empty((x.shape[0], outputs // 2))
    width = joined.shape[0] if pooled else outputs
    return x.new_empty((x.shape[0], width))[:, :outputs]


@torch.library.custom_op("tracnghiem::add_lora", mutates_args=("y",))
def _add_lora(
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    blocks: torch.Tensor,
    parts_of: torch.Tensor,
    block_tokens: int,
) -> None:
    hidden = shrink(x.contiguous(), a, blocks, block_tokens)
    expand(hidden, y, b, blocks, parts_of, block_tokens)


@_add_lora.register_fake
def _(x, y, a, b, blocks, parts_of, block_tokens):
    return None


class GpuKernels:
    """Chosen per step: how its attention and its adapters are computed."""

    def __init__(self) -> None:
        self.attention_blocks: torch.Tensor | None = None
        """The block table of a step with prompts; None when every token is a sequence's newest."""
        self.lora_blocks: torch.Tensor | None = None
        """The block table of all tokens, or None if the step uses no adapter."""
        self.pooled = False
        """Whether A is multiplied for the whole pool, as more outputs of the base's product: that
        reads what is not used, and launches nothing."""

    def attend(self, cache: SlotCache, query, key, value, scaling: float, window: int | None):
        plan, width = cache.plan, window or 0
        if self.attention_blocks is None:
            return _decode_attention(
                query[0], key[0], value[0], cache.keys, cache.values,
                plan.slots, plan.positions, scaling, width,
            )[None]  # fmt: skip
        return _prompt_attention(
            query[0], key[0], value[0], cache.keys, cache.values,
            plan.slots, plan.positions, self.attention_blocks, scaling, width,
        )[None]  # fmt: skip

    def lora_linear(self, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
        """The outputs of a group of layers side by side, the adapters' part included."""
        if group.joined is not None and group.weight is not None:
            if self.lora_blocks is not None:
                return self._lora_linear(group, x, gated=False)
            return linear(x, group.weight, group.bias)
        # 4-bit matrices cannot be joined
        y = torch.cat([base(x) for base in group.bases], dim=-1)
        if self.lora_blocks is not None:
            _add_lora(
                x[0], y[0], group.a, group.b, self.lora_blocks, group.parts_of, self._block_tokens
            )
        return y

    def gates(self, group: LinearGroup) -> bool:
        """Whether the running step has `gated` compute an MLP's gate and up."""
        return self.lora_blocks is not None and group.joined is not None

    def gated(self, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of a group of those two, the adapters' part included."""
        return self._lora_linear(group, x, gated=True)

    @property
    def _block_tokens(self) -> int:
        return DECODE_BLOCK if self.attention_blocks is None else PROMPT_BLOCK

    def _lora_linear(self, group: LinearGroup, x: torch.Tensor, *, gated: bool) -> torch.Tensor:
        return _lora_linear(
            x[0], group.joined, group.joined_bias, group.b, self.lora_blocks, group.parts_of,
            len(group.sizes), self._block_tokens, self.pooled, gated,
        )[None]  # fmt: skip
