# pyright: basic
# Triton's language is not Python to a type checker.
# ruff: noqa: N803 (compile-time constants are capitals there)
"""LoRA kernels: packed tokens times the rank rows of their own adapter, and back.

`blocks` kernels serve prompts, where many tokens in a row use one adapter; `rows` kernels serve
decoding, where every row may use another. Which adapter is read from a table: data, not code.
"""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = 64
"""Packed tokens of one adapter that a program of the block kernels takes."""


@triton.jit
def _shrink_blocks(
    x, a, hidden, blocks, inputs, width, ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr
):
    # A block of the table: first packed token, how many, first rank row, rank.
    block = blocks + tl.program_id(0) * 4
    token, count = tl.load(block), tl.load(block + 1)
    first, rank = tl.load(block + 2), tl.load(block + 3)
    ranks = tl.program_id(1) * RANK + tl.arange(0, RANK)
    if tl.program_id(1) * RANK >= rank:
        return
    tokens, column = token + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    present, used = tl.arange(0, ROWS) < count, ranks < rank
    sums = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, inputs, BLOCK):
        k = start + column
        left = tl.load(
            x + tokens[:, None].to(tl.int64) * inputs + k[None, :],
            present[:, None] & (k < inputs)[None, :],
            0.0,
        )
        right = tl.load(
            a + (first + ranks)[None, :].to(tl.int64) * inputs + k[:, None],
            used[None, :] & (k < inputs)[:, None],
            0.0,
        )
        sums += tl.dot(left, right)
    place = tokens[:, None].to(tl.int64) * width + ranks[None, :]
    tl.store(hidden + place, sums.to(hidden.dtype.element_ty), present[:, None] & used[None, :])


@triton.jit
def _expand_blocks(
    hidden,
    b,
    y,
    blocks,
    outputs,
    width,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = blocks + tl.program_id(0) * 4
    token, count = tl.load(block), tl.load(block + 1)
    first, rank = tl.load(block + 2), tl.load(block + 3)
    tokens, n = token + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present, column = tl.arange(0, ROWS) < count, tl.arange(0, RANK)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, rank, RANK):
        ranks = start + column
        used = ranks < rank
        left = tl.load(
            hidden + tokens[:, None].to(tl.int64) * width + ranks[None, :],
            present[:, None] & used[None, :],
            0.0,
        )
        right = tl.load(
            b + (first + ranks)[:, None].to(tl.int64) * outputs + n[None, :],
            used[:, None] & (n < outputs)[None, :],
            0.0,
        )
        sums += tl.dot(left, right)
    place = tokens[:, None].to(tl.int64) * outputs + n[None, :]
    cells = present[:, None] & (n < outputs)[None, :]
    base = tl.load(y + place, cells, 0.0)
    tl.store(y + place, (base + sums).to(y.dtype.element_ty), cells)


@triton.jit
def _shrink_rows(x, a, hidden, slots, spans, inputs, width, BLOCK: tl.constexpr):
    row, index = tl.program_id(0), tl.program_id(1)
    span = spans + tl.load(slots + row) * 2
    first, rank = tl.load(span), tl.load(span + 1)
    if index >= rank:
        return
    column = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, inputs, BLOCK):
        k = start + column
        left = tl.load(x + row * inputs + k, k < inputs, 0.0).to(tl.float32)
        right = tl.load(a + (first + index).to(tl.int64) * inputs + k, k < inputs, 0.0)
        sums += left * right.to(tl.float32)
    tl.store(hidden + row * width + index, tl.sum(sums, 0).to(hidden.dtype.element_ty))


@triton.jit
def _expand_rows(
    hidden, b, y, result, slots, spans, outputs, width, RANK: tl.constexpr, BLOCK: tl.constexpr
):
    row, n = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    span = spans + tl.load(slots + row) * 2
    first, rank = tl.load(span), tl.load(span + 1)
    column = tl.arange(0, RANK)
    sums = tl.load(y + row * outputs + n, n < outputs, 0.0).to(tl.float32)
    for start in range(0, rank, RANK):
        ranks = start + column
        left = tl.load(hidden + row * width + ranks, ranks < rank, 0.0).to(tl.float32)
        right = tl.load(
            b + (first + ranks)[:, None].to(tl.int64) * outputs + n[None, :],
            (ranks < rank)[:, None] & (n < outputs)[None, :],
            0.0,
        )
        sums += tl.sum(left[:, None] * right.to(tl.float32), 0)
    tl.store(result + row * outputs + n, sums.to(result.dtype.element_ty), n < outputs)


def lora_blocks(x, y, a, b, blocks, width: int) -> torch.Tensor:
    """Add the adapters' part to `y` in place; x is [tokens, inputs], width the highest rank."""
    hidden = torch.empty((len(x), width), dtype=x.dtype, device=x.device)
    inputs, outputs = x.shape[1], y.shape[1]
    rank = 16 if width <= 16 else 32
    if len(blocks):
        _shrink_blocks[(len(blocks), triton.cdiv(width, rank))](
            x, a, hidden, blocks, inputs, width,
            ROWS=BLOCK_TOKENS, RANK=rank, BLOCK=128, num_warps=4, num_stages=3,
        )  # fmt: skip
        _expand_blocks[(len(blocks), triton.cdiv(outputs, 128))](
            hidden, b, y, blocks, outputs, width,
            ROWS=BLOCK_TOKENS, RANK=rank, BLOCK=128, num_warps=4, num_stages=2,
        )  # fmt: skip
    return y


def lora_rows(x, y, a, b, slots, spans, width: int) -> torch.Tensor:
    """`y` and the part of each row's own adapter; x is [rows, inputs], width the highest rank."""
    rows, inputs = x.shape
    outputs = y.shape[1]
    hidden = torch.empty((rows, width), dtype=torch.float32, device=x.device)
    result = torch.empty_like(y)
    _shrink_rows[(rows, width)](
        x, a, hidden, slots, spans, inputs, width,
        BLOCK=min(1024, triton.next_power_of_2(inputs)), num_warps=4,
    )  # fmt: skip
    _expand_rows[(rows, triton.cdiv(outputs, 256))](
        hidden, b, y, result, slots, spans, outputs, width, RANK=16, BLOCK=256, num_warps=4,
    )  # fmt: skip
    return result
