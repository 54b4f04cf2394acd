# pyright: basic
# Triton's language is not Python to a type checker.
# ruff: noqa: N803 (compile-time constants are capitals there)
"""Attention kernels over KV slots: one for decoding, one for prompts.

Each reads exactly the keys that a sequence has, whatever its neighbours' lengths, and finds its
slot through an index, so one CUDA graph serves all lengths and all mixes of slots.
"""

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _decode_kernel(
    query, new_key, new_value, keys, values, output, slots, positions, scale,
    query_token, query_head, key_token, key_head, value_token, value_head,
    cache_slot, cache_head,
    WINDOW: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    slot, position = tl.load(slots + row), tl.load(positions + row)
    column, group, offset = tl.arange(0, WIDTH), tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = column < SIZE
    cache = slot * cache_slot + head * cache_head
    own_key = tl.load(new_key + row * key_token + head * key_head + column, inside, 0.0)
    own_value = tl.load(new_value + row * value_token + head * value_head + column, inside, 0.0)
    tl.store(keys + cache + position * SIZE + column, own_key, inside)
    tl.store(values + cache + position * SIZE + column, own_value, inside)
    heads = head * GROUPS + group
    cells = (group < GROUPS)[:, None] & inside[None, :]
    q = tl.load(
        query + row * query_token + heads[:, None] * query_head + column[None, :], cells, 0.0
    )
    # The new token is seen from registers; the loop reads only what earlier steps have stored.
    best = tl.sum(q.to(tl.float32) * own_key.to(tl.float32)[None, :], 1) * scale
    total = tl.full((ROWS,), 1.0, tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32) + own_value.to(tl.float32)[None, :]
    first = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else position * 0
    for start in range(first // BLOCK * BLOCK, position, BLOCK):
        n = start + offset
        seen = (n < position) & (n >= first)
        place = cache + n[:, None] * SIZE + column[None, :]
        k = tl.load(keys + place, seen[:, None] & inside[None, :], 0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - new_best[:, None])
        fade = tl.exp(best - new_best)
        v = tl.load(values + place, seen[:, None] & inside[None, :], 0.0)
        sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v)
        total = total * fade + tl.sum(weights, 1)
        best = new_best
    result = (sums / total[:, None]).to(output.dtype.element_ty)
    place = (row * tl.num_programs(1) * GROUPS + heads[:, None]) * SIZE + column[None, :]
    tl.store(output + place, result, cells)


@triton.jit
def _prompt_kernel(
    query, keys, values, output, blocks, scale,
    query_token, query_head, cache_slot, cache_head,
    WINDOW: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A block of the table: first packed token, how many, KV slot, position of the first.
    block, head = blocks + tl.program_id(0) * 4, tl.program_id(1)
    token, count = tl.load(block), tl.load(block + 1)
    slot, position = tl.load(block + 2), tl.load(block + 3)
    column, offset = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    index = tl.arange(0, ROWS)
    inside = column < SIZE
    cells = (index < count)[:, None] & inside[None, :]
    tokens, where = token + index, position + index
    q = tl.load(
        query + tokens[:, None] * query_token + head * query_head + column[None, :], cells, 0.0
    )
    cache = slot.to(tl.int64) * cache_slot + head // GROUPS * cache_head
    best = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    first = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else position * 0
    for start in range(first // BLOCK * BLOCK, position + count, BLOCK):
        n = start + offset
        present = (n < position + count)[:, None] & inside[None, :]
        place = cache + n[:, None] * SIZE + column[None, :]
        k = tl.load(keys + place, present, 0.0)
        seen = n[None, :] <= where[:, None]
        if WINDOW > 0:
            seen = seen & (n[None, :] > where[:, None] - WINDOW)
        scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.where(seen, tl.exp(scores - new_best[:, None]), 0.0)
        fade = tl.exp(best - new_best)
        v = tl.load(values + place, present, 0.0)
        sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v)
        total = total * fade + tl.sum(weights, 1)
        best = new_best
    result = (sums / total[:, None]).to(output.dtype.element_ty)
    heads = tl.num_programs(1)
    place = (tokens[:, None] * heads + head) * SIZE + column[None, :]
    tl.store(output + place, result, cells)


PROMPT_ROWS = 64
"""Packed tokens of one sequence that a program of the prompt kernel takes."""


def decode_attention(
    query, key, value, keys, values, slots, positions, scale: float, window: int
) -> torch.Tensor:
    """One new token per sequence: stores its key and value, and attends. [tokens, heads, size]."""
    heads, tokens, size = query.shape
    kv_heads = keys.shape[1]
    output = torch.empty((tokens, heads, size), dtype=query.dtype, device=query.device)
    width = triton.next_power_of_2(size)
    block = 64 if width <= 128 else 32
    # With few programs each runs alone on its processor: longer blocks mean fewer waits.
    block = 2 * block if tokens * kv_heads <= 32 else block
    launch: Any = _decode_kernel  # options of the compiler are no parameters of it
    launch[(tokens, kv_heads)](
        query, key, value, keys, values, output, slots, positions, scale,
        query.stride(1), query.stride(0), key.stride(1), key.stride(0),
        value.stride(1), value.stride(0), keys.stride(0), keys.stride(1),
        WINDOW=window, GROUPS=heads // kv_heads,
        ROWS=max(16, triton.next_power_of_2(heads // kv_heads)),
        SIZE=size, WIDTH=width, BLOCK=block, num_warps=4, num_stages=3,
    )  # fmt: skip
    return output


def prompt_attention(query, keys, values, blocks, scale: float, window: int) -> torch.Tensor:
    """Prompt tokens whose keys and values are stored already. [tokens, heads, size]."""
    heads, tokens, size = query.shape
    output = torch.empty((tokens, heads, size), dtype=query.dtype, device=query.device)
    width = triton.next_power_of_2(size)
    launch: Any = _prompt_kernel  # options of the compiler are no parameters of it
    launch[(len(blocks), heads)](
        query, keys, values, output, blocks, scale,
        query.stride(1), query.stride(0), keys.stride(0), keys.stride(1),
        WINDOW=window, GROUPS=heads // keys.shape[1], SIZE=size, WIDTH=width,
        ROWS=PROMPT_ROWS, BLOCK=64 if width <= 128 else 32, num_warps=4, num_stages=2,
    )  # fmt: skip
    return output
