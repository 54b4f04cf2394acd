# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Which adapter is in which LoRA slot, and on which rank rows of the pool.

Owned by the engine thread. A slot that a running sequence holds is never given to another adapter.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.adapter_files import HostAdapter
from service.engine.lora import LoraLinear
from service.errors import AdapterRejectedError

if TYPE_CHECKING:
    from service.engine.triton_copy import RowFiller

BASE_SLOT = 0
MAX_RANK = 512
"""Of one adapter; the kernels reserve this much between A and B."""
_ROW_UNIT = 8
"""Ranks are rounded up to this, so that products keep an aligned inner dimension."""


@dataclass
class LoraSlot:
    """An adapter in place."""

    number: int
    digest: str
    rows: slice
    holders: int = 0


class LoraSlots:
    """The slots of one model."""

    def __init__(self, linears: dict[str, LoraLinear], slots: int, rows: int) -> None:
        self._linears = linears
        self._rows = rows
        self._free_numbers = list(range(slots, BASE_SLOT, -1))
        self._by_digest: dict[str, LoraSlot] = {}
        self._filler = _filler_of(linears) if slots else None
        self.loads = self.evictions = 0

    def acquire(self, digest: str, adapter: HostAdapter) -> LoraSlot | None:
        """Hold a slot with the adapter in it, loading it if need be; None while all are held.

        Raises:
            AdapterRejectedError: Its rank exceeds the whole pool.
        """
        slot = self._by_digest.pop(digest, None) or self._load(digest, adapter)
        if slot is not None:
            self._by_digest[digest] = slot  # moves to the end: the first is the one idle longest
            slot.holders += 1
        return slot

    def release(self, slot: LoraSlot) -> None:
        """End one hold."""
        slot.holders -= 1

    def drop(self, digest: str) -> bool:
        """Empty the slot of an adapter nobody holds; says whether it is gone."""
        slot = self._by_digest.get(digest)
        if slot is not None and slot.holders == 0:
            self._evict(slot)
        return digest not in self._by_digest

    @property
    def held(self) -> int:
        """Holds of all slots together; zero when the engine is idle."""
        return sum(slot.holders for slot in self._by_digest.values())

    @property
    def in_use(self) -> int:
        """Slots that hold an adapter."""
        return len(self._by_digest)

    def _load(self, digest: str, adapter: HostAdapter) -> LoraSlot | None:
        rank = -(-adapter.rank // _ROW_UNIT) * _ROW_UNIT
        if rank > min(self._rows, MAX_RANK):
            raise AdapterRejectedError(
                adapter.name, f"rank {rank} exceeds the {min(self._rows, MAX_RANK)} rank rows"
            )
        rows = self._place(rank)
        if rows is None:
            return None
        slot = LoraSlot(self._free_numbers.pop(), digest, rows)
        self._fill(rows, adapter)
        self.loads += 1
        return slot

    def _place(self, rank: int) -> slice | None:
        """Free rows in a row, after evicting as few idle adapters as will do, longest idle
        first."""
        while True:
            if self._free_numbers and (rows := self._gap(rank)) is not None:
                return rows
            idle = next((s for s in self._by_digest.values() if s.holders == 0), None)
            if idle is None:
                return None
            self._evict(idle)
            self.evictions += 1

    def _gap(self, rank: int) -> slice | None:
        start = 0
        for slot in sorted(self._by_digest.values(), key=lambda s: s.rows.start):
            if slot.rows.start - start >= rank:
                break
            start = slot.rows.stop
        return slice(start, start + rank) if start + rank <= self._rows else None

    def _fill(self, rows: slice, adapter: HostAdapter) -> None:
        """Copy an adapter into its rows; those that a module does not use become zero."""
        if self._filler is not None:
            self._filler.fill(rows, adapter.flat, adapter.places)
            return
        for name, linear in self._linears.items():
            for pool, matrix in zip(
                (linear.a, linear.b), adapter.modules.get(name, (None, None)), strict=True
            ):
                used = rows.start + (0 if matrix is None else len(matrix))
                if matrix is not None:
                    pool[rows.start : used].copy_(matrix)
                pool[used : rows.stop].zero_()

    def _evict(self, slot: LoraSlot) -> None:
        del self._by_digest[slot.digest]
        self._free_numbers.append(slot.number)


def _filler_of(linears: dict[str, LoraLinear]) -> "RowFiller | None":
    pools = {
        (name, side): pool
        for name, linear in linears.items()
        for side, pool in enumerate((linear.a, linear.b))
    }
    if not all(pool.is_cuda for pool in pools.values()):
        return None
    from service.engine.triton_copy import RowFiller

    return RowFiller(pools)
