# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Attention over fixed KV slots, plugged into unmodified transformers models.

All tokens of a step travel as one packed row [1, tokens]. Every attention module writes its keys
and values into the slots of their sequences, then each sequence attends over its own slot. What a
step looks like is told beside the model's arguments, in a `StepPlan` that all layers share.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_NAME = "kv_slots"


BLOCK = 32
"""Tokens of a sequence that are computed together. Blocks begin at multiples of this, or where
computing began, so how a prompt is cut into steps changes nothing."""


@dataclass
class Block:
    """Tokens of one sequence in the running step."""

    slot: int
    tokens: slice
    """Where they are in the packed row."""
    start: int
    """Position of the first."""
    end: int
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, like: torch.Tensor) -> torch.Tensor | None:
        """[groups * tokens, end], 0 where a query may look and -inf elsewhere; None if it may
        everywhere."""
        if window not in self.masks:
            keys = torch.arange(self.end, device=like.device)
            query = torch.arange(self.start, self.end, device=like.device)[:, None]
            seen = keys <= query
            if window is not None:
                seen &= keys > query - window
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            mask = mask.masked_fill(~seen, float("-inf")).repeat(groups, 1)
            is_open = self.end == self.start + 1 and (window is None or window >= self.end)
            self.masks[window] = None if is_open else mask
        return self.masks[window]


@dataclass
class StepPlan:
    """Where the packed tokens of the running step belong. One object lives as long as the engine;
    its fields change from step to step, so that compiled code may hold on to it."""

    slots: torch.Tensor | None = None
    """[tokens]: the KV slot of every packed token."""
    positions: torch.Tensor | None = None
    blocks: list[Block] = field(default_factory=list)
    kernels: Any = None
    """The GPU's kernels (`service.engine.kernels`), when they take the step."""


class SlotCache:
    """Keys and values of one layer, [slots, heads, context, head size], and how to attend to
    them."""

    def __init__(self, plan: StepPlan, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.plan, self.keys, self.values = plan, keys, values

    def attend(self, query, key, value, scaling: float, window: int | None) -> torch.Tensor:
        """Store the new keys and values of [1, heads, tokens, size], return [1, tokens, heads,
        size]."""
        plan = self.plan
        if plan.kernels is not None:
            return plan.kernels.attend(self, query, key, value, scaling, window)
        self.keys[plan.slots, :, plan.positions] = key[0].transpose(0, 1).to(self.keys.dtype)
        self.values[plan.slots, :, plan.positions] = value[0].transpose(0, 1).to(self.values.dtype)
        output = torch.empty_like(query[0].transpose(0, 1))
        for block in plan.blocks:
            output[block.tokens] = self._attend_block(query[0], block, scaling, window)
        return output[None]

    def _attend_block(self, query, block: Block, scaling, window) -> torch.Tensor:
        heads, _, size = query.shape
        groups = heads // self.keys.shape[1]
        # The query heads that share a key head become more queries of that head: no key is
        # repeated.
        cells = query[:, block.tokens].reshape(1, -1, groups * (block.end - block.start), size)
        keys = self.keys[block.slot, None, :, : block.end].to(query.dtype)
        values = self.values[block.slot, None, :, : block.end].to(query.dtype)
        mask = block.mask(window, groups, query)
        attended = scaled_dot_product_attention(cells, keys, values, attn_mask=mask, scale=scaling)
        return attended.view(heads, -1, size).transpose(0, 1)


def slot_attention(
    module, query, key, value, attention_mask=None, scaling=None, sliding_window=None, **kwargs
):
    """The function transformers calls in every attention module."""
    del attention_mask, kwargs
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return module.slot_cache.attend(query, key, value, scale, sliding_window), None


def plan_blocks(lengths: list[int], starts: list[int], slots: list[int]) -> list[Block]:
    """Cut a step's pieces of sequences into blocks."""
    blocks: list[Block] = []
    offset = 0
    for length, start, slot in zip(lengths, starts, slots, strict=True):
        position, stop = start, start + length
        while position < stop:
            end = min(stop, (position // BLOCK + 1) * BLOCK)
            tokens = slice(offset, offset + end - position)
            blocks.append(Block(slot, tokens, position, end))
            offset, position = tokens.stop, end
    return blocks
