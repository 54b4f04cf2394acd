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


@dataclass
class Segments:
    """Sequences of one step that have about the same number of new tokens, padded to a
    rectangle."""

    slots: torch.Tensor
    """[n]: the KV slot of each."""
    first_slot: int | None
    """Set when there is only one: its keys are then read in place, without a copy."""
    tokens: torch.Tensor
    """[n, longest]: indices into the packed row; padding repeats an own token."""
    query_positions: torch.Tensor
    """[n, longest]."""
    key_length: int
    rows: torch.Tensor
    """Indices of the packed row that this group computes …"""
    cells: torch.Tensor
    """… and where they stand in the flattened rectangle."""
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """[n, 1, groups * longest, key_length], 0 where a query may look and -inf elsewhere."""
        key = (window, groups)
        if key not in self.masks:
            query = self.query_positions[:, None, :, None]
            keys = torch.arange(self.key_length, device=query.device)
            seen = keys <= query
            if window is not None:
                seen &= keys > query - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=query.device)
            mask = mask.masked_fill(~seen, float("-inf"))
            self.masks[key] = mask.repeat(1, 1, groups, 1)
        return self.masks[key]


@dataclass
class StepPlan:
    """Where the packed tokens of the running step belong. One object lives as long as the engine;
    its fields change from step to step, so that compiled code may hold on to it."""

    slots: torch.Tensor | None = None
    """[tokens]: the KV slot of every packed token."""
    positions: torch.Tensor | None = None
    segments: list[Segments] = field(default_factory=list)
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
        for segments in plan.segments:
            cells = self._attend_segments(query[0], segments, scaling, window)
            output[segments.rows] = cells[segments.cells]
        return output[None]

    def _attend_segments(self, query, segments: Segments, scaling, window) -> torch.Tensor:
        count, longest = segments.tokens.shape
        heads, _, size = query.shape
        groups = heads // self.keys.shape[1]
        # The query heads that share a key head become more queries of that head: no key is
        # repeated.
        cells = query[:, segments.tokens].view(-1, groups, count, longest, size)
        cells = cells.permute(2, 0, 1, 3, 4).reshape(count, -1, groups * longest, size)
        if segments.first_slot is not None:
            one = slice(segments.first_slot, segments.first_slot + 1)
            keys = self.keys[one, :, : segments.key_length]
            values = self.values[one, :, : segments.key_length]
        else:
            keys = self.keys[segments.slots, :, : segments.key_length]
            values = self.values[segments.slots, :, : segments.key_length]
        mask = segments.mask(window, groups, query.dtype)
        attended = scaled_dot_product_attention(
            cells, keys.to(query.dtype), values.to(query.dtype), attn_mask=mask, scale=scaling
        )
        attended = attended.view(count, heads, longest, size).transpose(1, 2)
        return attended.reshape(count * longest, heads, size)


def slot_attention(
    module, query, key, value, attention_mask=None, scaling=None, sliding_window=None, **kwargs
):
    """The function transformers calls in every attention module."""
    del attention_mask, kwargs
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return module.slot_cache.attend(query, key, value, scale, sliding_window), None


def plan_segments(
    lengths: list[int], starts: list[int], slots: list[int], device: torch.device
) -> list[Segments]:
    """Group a step's sequences: those with one new token, and the others padded to the longest."""
    groups: dict[bool, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length == 1, []).append(index)
    offsets = [sum(lengths[:index]) for index in range(len(lengths))]
    result = []
    for members in groups.values():
        longest = max(lengths[i] for i in members)
        tokens = [[offsets[i] + min(j, lengths[i] - 1) for j in range(longest)] for i in members]
        positions = [[starts[i] + min(j, lengths[i] - 1) for j in range(longest)] for i in members]
        rows = [offsets[i] + j for i in members for j in range(lengths[i])]
        cells = [n * longest + j for n, i in enumerate(members) for j in range(lengths[i])]
        as_tensor = lambda values: torch.tensor(values, device=device)  # noqa: E731
        result.append(
            Segments(
                slots=as_tensor([slots[i] for i in members]),
                first_slot=slots[members[0]] if len(members) == 1 else None,
                tokens=as_tensor(tokens),
                query_positions=as_tensor(positions),
                key_length=max(starts[i] + lengths[i] for i in members),
                rows=as_tensor(rows),
                cells=as_tensor(cells),
            )
        )
    return result
