"""Adapters on their way from disk to slots: read on a worker thread, kept in host memory up to a
limit.

An adapter that some request holds stays; of the others the one idle longest goes first. Counts
change under a lock, because requests arrive on another thread than the engine's.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.adapter_files import HostAdapter


@dataclass
class _Entry:
    adapter: HostAdapter
    holders: int = 0


class AdapterStore:
    """Host memory's adapters by digest."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def hold(self, digest: str) -> HostAdapter | None:
        """The adapter, kept until `release`; None if it has to be read first."""
        with self._lock:
            entry = self._entries.pop(digest, None)
            if entry is None:
                return None
            self._entries[digest] = entry  # moves to the end: the first is the one idle longest
            entry.holders += 1
            return entry.adapter

    def release(self, digest: str) -> None:
        """End one hold."""
        with self._lock:
            self._entries[digest].holders -= 1
            self._shrink()

    def put(self, digest: str, read: Callable[[], HostAdapter]) -> HostAdapter:
        """Hold an adapter, reading it if it is absent. Blocks; for a worker thread."""
        if (held := self.hold(digest)) is not None:
            return held
        adapter = read()
        with self._lock:
            entry = self._entries.setdefault(digest, _Entry(adapter))
            entry.holders += 1
            self._shrink()
            return entry.adapter

    def drop(self, digest: str) -> bool:
        """Forget an adapter nobody holds; says whether it is gone."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and entry.holders == 0:
                del self._entries[digest]
            return digest not in self._entries

    @property
    def size(self) -> int:
        """Bytes taken."""
        return sum(entry.adapter.size for entry in self._entries.values())

    @property
    def holders(self) -> int:
        """Holds of all adapters together; zero when the engine is idle."""
        return sum(entry.holders for entry in self._entries.values())

    def _shrink(self) -> None:
        for digest in list(self._entries):
            if self.size <= self._limit:
                return
            if self._entries[digest].holders == 0:
                del self._entries[digest]
