# pyright: basic
# Triton's kernels are untyped.
"""The GPU's kernels against plain torch, on the CPU by Triton's interpreter.

Run by `test_kernels.py` in a process of its own, since the interpreter has to be chosen before
Triton is imported: `TRITON_INTERPRET=1 python -m tests.service.engine.kernel_checks NAME`.
"""

import sys
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from service.engine.triton_attention import decode_attention, prompt_attention
from service.engine.triton_copy import RowFiller
from service.engine.triton_lora import (
    DECODE_BLOCK,
    NARROW,
    PROMPT_BLOCK,
    WIDE,
    expand,
    open_gate,
    parts_of_blocks,
    shrink,
)

POOL = 64
# First token, how many, first rank row, rank: the base, a full and a short block of one adapter,
# one of a rank that no tile divides, and a block of the table that is not used.
TABLE = [[0, 3, 0, 0], [3, 16, 8, 16], [19, 4, 8, 16], [23, 1, 24, 40], [0, 0, 0, 0]]
TOKENS = 24


class Group:
    """Layers of one input with adapters, and what they should give."""

    def __init__(self, inputs: int, sizes: list[int]) -> None:
        generator = torch.Generator().manual_seed(len(sizes))

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / inputs**0.5

        self.sizes, self.outputs = sizes, sum(sizes)
        self.x, self.weight = random(TOKENS, inputs), random(self.outputs, inputs)
        self.a, self.b = random(len(sizes), POOL, inputs), random(POOL, self.outputs)
        self.blocks = torch.tensor(TABLE, dtype=torch.int32)
        self.parts_of = parts_of_blocks(sizes, self.x.device)
        self.base = self.x @ self.weight.t()
        self.expected = self.base.clone()
        for token, count, first, rank in TABLE:
            rows = slice(first, first + rank)
            for part, columns in enumerate(torch.arange(self.outputs).split(sizes)):
                inner = self.x[token : token + count] @ self.a[part, rows].t()
                self.expected[token : token + count, columns] += inner @ self.b[rows][:, columns]

    def apart(
        self, *, gated: bool = False, block: int = DECODE_BLOCK, tile: int = NARROW
    ) -> torch.Tensor:
        hidden = shrink(self.x, self.a, self.blocks, block, tile)
        y = self.base.clone()
        return expand(hidden, y, self.b, self.blocks, self.parts_of, block, tile, gated=gated)

    def pooled(self, *, gated: bool = False) -> torch.Tensor:
        joined = torch.cat([self.weight, self.a.flatten(0, 1)])
        y = self.x @ joined.t()
        hidden = y[None, :, self.outputs :].unflatten(2, (len(self.sizes), POOL))
        y = y[:, : self.outputs]
        return expand(
            hidden, y, self.b, self.blocks, self.parts_of, DECODE_BLOCK, pooled=True, gated=gated
        )


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def lora() -> None:
    for group in (Group(384, [256, 128, 128]), Group(2560, [384])):
        same(group.apart(), group.expected)
        same(group.apart(block=PROMPT_BLOCK), group.expected)
        same(group.apart(tile=WIDE), group.expected)
        same(group.pooled(), group.expected)
        assert not torch.allclose(group.expected, group.base, atol=1e-3)


def gated() -> None:
    group = Group(256, [384, 384])
    gate, up = group.expected.chunk(2, dim=1)
    same(group.apart(gated=True), silu(gate) * up)
    same(group.pooled(gated=True), silu(gate) * up)
    same(group.apart(gated=True, tile=WIDE), silu(gate) * up)
    gate, up = group.base.chunk(2, dim=1)
    same(open_gate(group.base), silu(gate) * up)


def rows() -> None:
    """An adapter lands in its own rows only; what a module lacks becomes zero."""
    # There is no device to pin memory for.
    setattr(torch.Tensor, "pin_memory", lambda self: self)  # noqa: B010
    pools = {name: torch.ones(40, 300) for name in (("q", 0), ("k", 0))}
    pools["q", 1] = torch.ones(40, 700)[:, 100:500]  # columns of a wider matrix
    a, b = torch.randn(12, 300), torch.randn(12, 400)
    flat = torch.cat([a.flatten(), b.flatten()])
    places = {("q", 0): (0, 12), ("q", 1): (a.numel(), 12)}
    RowFiller(pools).fill(slice(8, 24), flat, places)
    for name, matrix in ((("q", 0), a), (("q", 1), b), (("k", 0), a[:0])):
        expected = torch.ones_like(pools[name])
        expected[8:24] = 0
        expected[8 : 8 + len(matrix)] = matrix
        assert torch.equal(pools[name], expected), name


def attention() -> None:
    """Prompts in pieces, then a token each, over slots of which the others stay as they were."""
    heads, kv_heads, size, context = 4, 2, 16, 80
    cache = torch.full((2, 3, kv_heads, context, size), 7.0)
    query, key, value = (torch.randn(h, 70, size) for h in (heads, kv_heads, kv_heads))
    groups = heads // kv_heads
    expected = scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0), is_causal=True
    ).transpose(0, 1)
    keys, values = cache
    keys[1, :, :69], values[1, :, :69] = key[:, :69], value[:, :69]
    blocks = torch.tensor([[0, 64, 1, 0], [64, 5, 1, 64], [0, 0, 0, 0]], dtype=torch.int32)
    same(prompt_attention(query[:, :69], keys, values, blocks, size**-0.5, 0), expected[:69])
    slots, positions = torch.tensor([1]), torch.tensor([69])
    last = (query[:, 69:], key[:, 69:], value[:, 69:])
    ours = decode_attention(*last, keys, values, slots, positions, size**-0.5, 0)
    same(ours, expected[69:])
    assert torch.equal(keys[1, :, 69], key[:, 69])
    assert (cache[:, [0, 2]] == 7).all()


CHECKS: dict[str, Callable[[], None]] = {
    "lora": lora,
    "gated": gated,
    "rows": rows,
    "attention": attention,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    CHECKS[sys.argv[1]]()
