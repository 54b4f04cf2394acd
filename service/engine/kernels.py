# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""How a GPU takes a step: our kernels as operators that torch.compile leaves alone.

Imported only where there is a GPU, since Triton compiles for one.
"""

from functools import cache

import torch
from torch.nn.functional import linear

from service.engine.attention import SlotCache
from service.engine.lora import LinearGroup
from service.engine.triton_attention import decode_attention, prompt_attention
from service.engine.triton_lora import DECODE_BLOCK, PROMPT_BLOCK, add_lora, expand, shrink

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
    add_lora(x.contiguous(), y, a, b, blocks, parts_of, block_tokens)


@_add_lora.register_fake
def _(x, y, a, b, blocks, parts_of, block_tokens):
    return None


@torch.library.custom_op("tracnghiem::forked_lora_linear", mutates_args=())
def _forked_lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    blocks: torch.Tensor,
    parts_of: torch.Tensor,
    block_tokens: int,
) -> torch.Tensor:
    main, side = torch.cuda.current_stream(), _side_stream()
    x = x.contiguous()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        hidden = shrink(x, a, blocks, block_tokens)
    y = linear(x, weight, bias)
    main.wait_stream(side)
    # The next step on the side waits for this stream first, so `hidden` is not reused too early.
    expand(hidden, y, b, blocks, parts_of, block_tokens)
    return y


@_forked_lora_linear.register_fake
def _(x, weight, bias, a, b, blocks, parts_of, block_tokens):
    return x.new_empty((x.shape[0], weight.shape[0]))


@cache
def _side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


class GpuKernels:
    """Chosen per step: how its attention and its adapters are computed."""

    def __init__(self, *, forked: bool = False) -> None:
        self.forked = forked
        """Whether A runs beside the base's product, on a stream of its own."""
        self.attention_blocks: torch.Tensor | None = None
        """The block table of a step with prompts; None when every token is a sequence's newest."""
        self.lora_blocks: torch.Tensor | None = None
        """The block table of the adapters, or None if the step uses none."""

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
        tokens = DECODE_BLOCK if self.attention_blocks is None else PROMPT_BLOCK
        if self.forked and self.lora_blocks is not None and group.weight is not None:
            return _forked_lora_linear(
                x[0], group.weight, group.bias, group.a, group.b,
                self.lora_blocks, group.parts_of, tokens,
            )[None]  # fmt: skip
        if group.weight is None:  # 4-bit matrices cannot be joined
            y = torch.cat([base(x) for base in group.bases], dim=-1)
        else:
            y = linear(x, group.weight, group.bias)
        if self.lora_blocks is not None:
            _add_lora(x[0], y[0], group.a, group.b, self.lora_blocks, group.parts_of, tokens)
        return y
