# pyright: basic
# Triton's language is not Python to a type checker.
# ruff: noqa: N803 (compile-time constants are capitals there)
"""LoRA kernels: packed tokens times the rank rows of their own adapter, and back.

Tokens of one adapter stand together, in blocks told by a table on the device: which adapter runs is
data, not code. Layers with the same input are served at once as `parts`. Every adapter in use is
read once a step, so the cost follows the adapters in the batch, not the slots or the highest rank.
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
_RANK = 16
_OUTPUTS = 128


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
    if count == 0:
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
def _expand(
    hidden, b, y, blocks, parts_of, tokens_total, outputs, width,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    block = blocks + tl.program_id(0) * 4
    token, count = tl.load(block), tl.load(block + 1)
    first, rank = tl.load(block + 2), tl.load(block + 3)
    if count == 0:
        return
    part = tl.load(parts_of + tl.program_id(1))
    tokens, n = token + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present, column = tl.arange(0, ROWS) < count, tl.arange(0, RANK)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, rank, RANK):
        ranks = start + column
        used = ranks < rank
        cells = present[:, None] & used[None, :]
        left = tl.zeros((ROWS, RANK), tl.float32)
        # Unrolled, so that no load waits for another.
        for split in tl.static_range(SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
            place = (split * tokens_total + tokens[:, None]).to(tl.int64) * (PARTS * width)
            left += tl.load(hidden + place + part * width + ranks[None, :], cells, 0.0)
        right = tl.load(
            b + (first + ranks)[:, None].to(tl.int64) * outputs + n[None, :],
            used[:, None] & (n < outputs)[None, :],
            0.0,
        )
        sums += tl.dot(left.to(right.dtype), right)
    place = tokens[:, None].to(tl.int64) * outputs + n[None, :]
    cells = present[:, None] & (n < outputs)[None, :]
    base = tl.load(y + place, cells, 0.0)
    tl.store(y + place, (base + sums).to(y.dtype.element_ty), cells)


def parts_of_blocks(sizes: list[int], device: torch.device) -> torch.Tensor | None:
    """Which part each block of outputs belongs to; None if a block would span two."""
    if len(sizes) > 1 and any(size % _OUTPUTS for size in sizes):
        return None
    numbers = [part for part, size in enumerate(sizes) for _ in range(-(-size // _OUTPUTS))]
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def add_lora(x, y, a, b, blocks, parts_of, block_tokens: int) -> None:
    """Add the adapters' part to `y` [tokens, outputs] in place.

    Args:
        a: [parts, pool rows, inputs].
        b: [pool rows, outputs], the parts side by side.
        blocks: The table; a block of no tokens is skipped.
    """
    if len(blocks):
        expand(shrink(x, a, blocks, block_tokens), y, b, blocks, parts_of, block_tokens)


def shrink(x, a, blocks, block_tokens: int) -> torch.Tensor:
    """Tokens times the A rows of their adapters: [splits, tokens, parts, highest rank]."""
    tokens, inputs = x.shape
    parts, pool_rows, _ = a.shape
    width = min(pool_rows, MAX_RANK)
    # Prompts fill the device with tokens alone; decoding needs the inputs split as well.
    chunk = inputs if block_tokens == PROMPT_BLOCK else 512
    splits = triton.cdiv(inputs, chunk)
    hidden = torch.empty((splits, tokens, parts, width), dtype=torch.float32, device=x.device)
    launch: Any = _shrink  # options of the compiler are no parameters of it
    launch[(len(blocks), parts, splits)](
        x, a, hidden, blocks, tokens, inputs, pool_rows, width, chunk,
        PARTS=parts, ROWS=block_tokens, RANK=_RANK, BLOCK=128, num_warps=4, num_stages=3,
    )  # fmt: skip
    return hidden


def expand(hidden, y, b, blocks, parts_of, block_tokens: int) -> None:
    """Add what `shrink` gave, times the B rows of each adapter, to `y` in place."""
    splits, tokens, parts, width = hidden.shape
    launch: Any = _expand  # options of the compiler are no parameters of it
    launch[(len(blocks), len(parts_of))](
        hidden, b, y, blocks, parts_of, tokens, b.shape[1], width,
        SPLITS=splits, PARTS=parts, ROWS=block_tokens, RANK=_RANK, BLOCK=_OUTPUTS,
        num_warps=4, num_stages=2,
    )  # fmt: skip
