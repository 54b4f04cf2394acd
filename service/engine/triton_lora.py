# pyright: basic
# Triton's language is not Python to a type checker.
# ruff: noqa: N803 (compile-time constants are capitals there)
"""LoRA kernels: packed tokens times the rank rows of their own adapter, and back.

Tokens of one adapter stand together, in blocks told by a table on the device: which adapter runs is
data, not code. Layers with the same input are served at once as `parts`. Every adapter in use is
read once a step, so the cost follows the adapters in the batch, not the slots or the highest rank.
Tokens of the bare base have blocks of rank 0.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from service.engine.lora_slots import MAX_RANK

PROMPT_BLOCK = 64
"""Tokens of a block in prompts, where many in a row use one adapter."""
DECODE_BLOCK = 16
"""Tokens of a block in decoding; a matrix unit takes no fewer."""
NARROW, WIDE = 16, 64
"""Ranks of an adapter that a product takes at once. Of large adapters the fewer the rounds, the
less is read again; small ones leave a wide product mostly empty."""
_PART = 128
"""No part has a width that this does not divide."""
_TILES = {
    (PROMPT_BLOCK, False): (128, 4),
    (PROMPT_BLOCK, True): (64, 4),
    (DECODE_BLOCK, False): (128, 4),
    (DECODE_BLOCK, True): (128, 4),
}
"""Outputs of a program of `expand` and its warps, by block of tokens and whether it is gated: the
fastest on an H100."""
_INPUTS = {PROMPT_BLOCK: 2304, DECODE_BLOCK: 512}
"""Inputs that one program of `shrink` sums up: decoding has few tokens and needs the programs."""


@triton.jit
def _shrink(
    x, a, hidden, blocks, tokens_total, inputs, pool_rows, width, chunk,
    PARTS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A block of the table: first packed token, how many, first rank row, rank.
    block = blocks + tl.program_id(0) * 4
    token, count = tl.load(block), tl.load(block + 1)
    first, rank = tl.load(block + 2), tl.load(block + 3)
    part, split = tl.program_id(1), tl.program_id(2)
    if count == 0 or rank == 0:
        return
    tokens, column = token + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    present = tl.arange(0, ROWS) < count
    end = tl.minimum((split + 1) * chunk, inputs)
    for low in range(0, rank, RANK):
        ranks = low + tl.arange(0, RANK)
        used = ranks < rank
        rows = (part * pool_rows + first + ranks).to(tl.int64)
        sums = tl.zeros((ROWS, RANK), tl.float32)
        for start in range(split * chunk, end, BLOCK):
            k = start + column
            left = tl.load(
                x + tokens[:, None].to(tl.int64) * inputs + k[None, :],
                present[:, None] & (k < end)[None, :],
                0.0,
            )
            right = tl.load(
                a + rows[None, :] * inputs + k[:, None], used[None, :] & (k < end)[:, None], 0.0
            )
            sums += tl.dot(left, right)
        place = (split * tokens_total + tokens[:, None]).to(tl.int64) * (PARTS * width)
        tl.store(
            hidden + place + part * width + ranks[None, :],
            sums,
            present[:, None] & used[None, :],
        )


@triton.jit
def _change(
    hidden, b, tokens, present, n, part, first, rank, offset,
    hidden_split, hidden_token, hidden_part, outputs,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # What the adapter adds to outputs `n` of the block's tokens.
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, rank, RANK):
        ranks = start + tl.arange(0, RANK)
        used = ranks < rank
        cells = present[:, None] & used[None, :]
        place = tokens[:, None].to(tl.int64) * hidden_token + part * hidden_part + offset
        place += ranks[None, :]
        left = tl.zeros((ROWS, RANK), tl.float32)
        # Unrolled, so that no load waits for another.
        for split in tl.static_range(SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
            left += tl.load(hidden + split * hidden_split + place, cells, 0.0).to(tl.float32)
        right = tl.load(
            b + (first + ranks)[:, None].to(tl.int64) * outputs + n[None, :],
            used[:, None] & (n < outputs)[None, :],
            0.0,
        )
        sums += tl.dot(left.to(right.dtype), right)
    return sums


@triton.jit
def _expand(
    hidden, b, y, out, blocks, parts_of, outputs, y_token, out_token,
    hidden_split, hidden_token, hidden_part,
    SPLITS: tl.constexpr, POOLED: tl.constexpr, GATED: tl.constexpr, IN_PLACE: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    block = blocks + tl.program_id(0) * 4
    token, count = tl.load(block), tl.load(block + 1)
    first, rank = tl.load(block + 2), tl.load(block + 3)
    if count == 0:
        return
    offset = first if POOLED else first * 0
    tokens, n = token + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = tl.arange(0, ROWS) < count
    place = tokens[:, None].to(tl.int64) * y_token + n[None, :]
    if GATED:
        inner = outputs // 2
        cells = present[:, None] & (n < inner)[None, :]
        gate = tl.load(y + place, cells, 0.0).to(tl.float32)
        up = tl.load(y + inner + place, cells, 0.0).to(tl.float32)
        gate += _change(
            hidden, b, tokens, present, n, 0, first, rank, offset,
            hidden_split, hidden_token, hidden_part, outputs, SPLITS, ROWS, RANK, BLOCK,
        )  # fmt: skip
        up += _change(
            hidden, b, tokens, present, n + inner, 1, first, rank, offset,
            hidden_split, hidden_token, hidden_part, outputs, SPLITS, ROWS, RANK, BLOCK,
        )  # fmt: skip
        result = gate * tl.sigmoid(gate) * up
    else:
        if IN_PLACE and rank == 0:
            return
        part = tl.load(parts_of + tl.program_id(1) * BLOCK // PART)
        cells = present[:, None] & (n < outputs)[None, :]
        result = tl.load(y + place, cells, 0.0).to(tl.float32)
        result += _change(
            hidden, b, tokens, present, n, part, first, rank, offset,
            hidden_split, hidden_token, hidden_part, outputs, SPLITS, ROWS, RANK, BLOCK,
        )  # fmt: skip
    place = tokens[:, None].to(tl.int64) * out_token + n[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), cells)


@triton.jit
def _open_gate(y, out, inner, BLOCK: tl.constexpr):
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < inner
    gate = tl.load(y + row * 2 * inner + n, inside, 0.0).to(tl.float32)
    up = tl.load(y + row * 2 * inner + inner + n, inside, 0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * inner + n, result.to(out.dtype.element_ty), inside)


def parts_of_blocks(sizes: list[int], device: torch.device) -> torch.Tensor | None:
    """Which part each block of outputs belongs to; None if a block would span two."""
    if len(sizes) > 1 and any(size % _PART for size in sizes):
        return None
    numbers = [part for part, size in enumerate(sizes) for _ in range(-(-size // _PART))]
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def shrink(x, a, blocks, block_tokens: int, rank_tile: int = NARROW) -> torch.Tensor:
    """Tokens times the A rows of their adapters: [splits, tokens, parts, highest rank].

    Args:
        a: [parts, pool rows, inputs].
        blocks: The table; a block of no tokens is skipped.
        rank_tile: `NARROW` or `WIDE`; any rank works with either.
    """
    tokens, inputs = x.shape
    parts, pool_rows, _ = a.shape
    width = min(pool_rows, MAX_RANK)
    chunk = _INPUTS[block_tokens]
    splits = triton.cdiv(inputs, chunk)
    hidden = torch.empty((splits, tokens, parts, width), dtype=torch.float32, device=x.device)
    launch: Any = _shrink  # options of the compiler are no parameters of it
    launch[(len(blocks), parts, splits)](
        x, a, hidden, blocks, tokens, inputs, pool_rows, width, chunk,
        PARTS=parts, ROWS=block_tokens, RANK=rank_tile, BLOCK=128, num_warps=4, num_stages=3,
    )  # fmt: skip
    return hidden


def expand(
    hidden,
    y,
    b,
    blocks,
    parts_of,
    block_tokens: int,
    rank_tile: int = NARROW,
    *,
    pooled: bool = False,
    gated: bool = False,
) -> torch.Tensor:
    """Add `hidden`, times the B rows of each adapter, to `y` [tokens, outputs].

    Args:
        hidden: [splits, tokens, parts, ranks]: what `shrink` gave, or with `pooled` the products
            with all rows of the pool.
        b: [pool rows, outputs], the parts side by side.
        gated: The outputs are gate and up of an MLP; returns silu(gate) * up instead.

    Returns:
        [tokens, outputs] without gaps: `y`, changed in place, unless it has gaps; or with `gated` a
        new tensor [tokens, outputs / 2]. What is new is only written for tokens of some block.
    """
    splits, tokens = hidden.shape[:2]
    outputs = b.shape[1]
    in_place = not gated and y.is_contiguous()
    out = y if in_place else y.new_empty((tokens, outputs // 2 if gated else outputs))
    tile, warps = _TILES[block_tokens, gated]
    tiles = triton.cdiv(outputs // 2 if gated else outputs, tile)
    launch: Any = _expand  # options of the compiler are no parameters of it
    launch[(len(blocks), tiles)](
        hidden, b, y, out, blocks, parts_of, outputs, y.stride(0), out.stride(0),
        hidden.stride(0), hidden.stride(1), hidden.stride(2),
        SPLITS=splits, POOLED=pooled, GATED=gated, IN_PLACE=in_place, ROWS=block_tokens,
        RANK=rank_tile, BLOCK=tile, PART=_PART, num_warps=warps, num_stages=2,
    )  # fmt: skip
    return out


def open_gate(y) -> torch.Tensor:
    """silu(gate) * up of [tokens, gate and up side by side]."""
    tokens, inner = len(y), y.shape[1] // 2
    out = y.new_empty((tokens, inner))
    launch: Any = _open_gate  # a block's size is a plain number to its caller
    launch[(tokens, triton.cdiv(inner, 1024))](y, out, inner, BLOCK=1024)
    return out
