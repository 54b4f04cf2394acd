# pyright: basic
# Triton's language is not Python to a type checker.
# ruff: noqa: N803 (compile-time constants are capitals there)
"""An adapter into its rank rows of every layer by one kernel: hundreds of small copies would hold
up the host for longer than the data take."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _fill_rows(flat, pools, matrices, first, CAST: tl.constexpr, BLOCK: tl.constexpr):
    # A pool: address, elements from row to row, width. A matrix: where it begins in `flat`, ranks.
    index, rank = tl.program_id(0), tl.program_id(1)
    pool = tl.load(pools + index * 3).to(tl.pointer_type(CAST))  # pyright: ignore[reportArgumentType]
    stride, width = tl.load(pools + index * 3 + 1), tl.load(pools + index * 3 + 2)
    start, ranks = tl.load(matrices + index * 2), tl.load(matrices + index * 2 + 1)
    row = pool + (first + rank) * stride
    used = tl.where(rank < ranks, width, 0)
    for low in range(0, width, BLOCK):
        column = low + tl.arange(0, BLOCK)
        values = tl.load(flat + start + rank * width + column, column < used, 0.0)
        tl.store(row + column, values, column < width)


class RowFiller:
    """Fills the same ranks of many pools [rows, width] on a GPU."""

    def __init__(self, pools: Mapping[tuple[str, int], torch.Tensor]) -> None:
        self._names = list(pools)
        self._pools = dict(pools)  # kept alive: the table holds their addresses
        table = [(p.data_ptr(), p.stride(0), p.shape[1]) for p in pools.values()]
        any_pool = next(iter(pools.values()))
        self._device, self._dtype = any_pool.device, any_pool.dtype
        self._table = torch.tensor(table, dtype=torch.int64, device=self._device)

    def fill(
        self, rows: slice, flat: torch.Tensor, places: Mapping[tuple[str, int], Sequence[int]]
    ) -> None:
        """Copy matrices [ranks, width] into the rows; rows that a matrix lacks become zero.

        Args:
            flat: All matrices in one piece, in host memory.
            places: For each pool where its matrix begins in `flat`, and its ranks.
        """
        matrices = torch.tensor([places.get(name, (0, 0)) for name in self._names])
        data = flat.to(self._device, self._dtype, non_blocking=True)
        matrices = matrices.pin_memory().to(self._device, non_blocking=True)
        launch: Any = _fill_rows
        launch[(len(self._names), rows.stop - rows.start)](
            data, self._table, matrices, rows.start,
            CAST=_ELEMENTS[self._dtype], BLOCK=2048, num_warps=4,
        )  # fmt: skip


_ELEMENTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
