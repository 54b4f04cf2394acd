# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""How a GPU takes a step: our kernels as operators that torch.compile leaves alone.

Imported only where there is a GPU, since Triton compiles for one.
"""

import torch
from torch.nn.functional import linear

from service.engine.attention import SlotCache
from service.engine.lora import LoraLinear
from service.engine.triton_attention import decode_attention, prompt_attention
from service.engine.triton_lora import lora_blocks, lora_rows

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


@torch.library.custom_op("tracnghiem::lora_rows", mutates_args=())
def _lora_rows(
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slots: torch.Tensor,
    spans: torch.Tensor,
    width: int,
) -> torch.Tensor:
    return lora_rows(x.contiguous(), y.contiguous(), a, b, slots, spans, width)


@torch.library.custom_op("tracnghiem::lora_blocks", mutates_args=("y",))
def _lora_blocks(
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    blocks: torch.Tensor,
    width: int,
) -> None:
    lora_blocks(x.contiguous(), y, a, b, blocks, width)


@_lora_rows.register_fake
def _(x, y, a, b, slots, spans, width):
    return torch.empty_like(y)


@_lora_blocks.register_fake
def _(x, y, a, b, blocks, width):
    return None


class GpuKernels:
    """Chosen per step: how its attention and its adapters are computed."""

    def __init__(self, owner: torch.Tensor, spans: torch.Tensor, max_rank: int) -> None:
        self._owner, self._spans, self._width = owner, spans, max_rank
        self.attention_blocks: torch.Tensor | None = None
        """The block table of a step with prompts; None when every token is a sequence's newest."""
        self.lora = "off"
        """`off`, `pool` (one product with all adapters, then a mask), `rows` or `blocks`."""
        self.lora_table: torch.Tensor | None = None
        """The LoRA slot of each row, or the block table."""

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

    def lora_linear(self, layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        if self.lora == "off":
            return layer.base(x)
        y, rows, table = layer.base(x)[0], x[0], self.lora_table
        if self.lora == "pool":
            hidden = linear(rows, layer.a)
            hidden = torch.where(self._owner[None, :] == table[:, None], hidden, 0)
            return torch.addmm(y, hidden, layer.b)[None]
        if self.lora == "rows":
            return _lora_rows(rows, y, layer.a, layer.b, table, self._spans, self._width)[None]
        _lora_blocks(rows, y, layer.a, layer.b, table, self._width)
        return y[None]
