"""Things that are loaded when first asked for, of which only so many fit at once."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from service.errors import BackendOverloadedError

S = TypeVar("S")
T = TypeVar("T")


class _Entry(Generic[S, T]):
    """One thing on its way in, or in."""

    def __init__(self, subject: S, loading: asyncio.Task[T]) -> None:
        self.subject = subject
        self.loading = loading
        self.users = 0

    @property
    def has_failed(self) -> bool:
        """Whether loading ended without a result."""
        if not self.loading.done():
            return False
        return self.loading.cancelled() or self.loading.exception() is not None


class HeldItems(Generic[S, T]):
    """Holds what requests use and what was used last; one in use is never pushed out.

    Args:
        load, unload: Called for one subject at a time, so that what goes makes room for what comes.
    """

    def __init__(
        self,
        capacity: int,
        load: Callable[[S], Awaitable[T]],
        unload: Callable[[S, T], Awaitable[None]],
    ) -> None:
        self._capacity = capacity
        self._load = load
        self._unload = unload
        self._entries: dict[str, _Entry[S, T]] = {}  # the one used last at the end
        self._changing = asyncio.Lock()

    @property
    def subjects(self) -> tuple[S, ...]:
        """What is loaded or being loaded."""
        return tuple(e.subject for e in self._entries.values() if not e.has_failed)

    @property
    def loaded(self) -> frozenset[str]:
        """Keys of what is ready."""
        return frozenset(
            key for key, e in self._entries.items() if e.loading.done() and not e.has_failed
        )

    @asynccontextmanager
    async def acquire(self, key: str, subject: S) -> AsyncGenerator[T]:
        """Hold the loaded thing for the length of a block.

        Raises:
            BackendOverloadedError: As many others are in use as fit.
        """
        entry = self._entries.get(key)
        if entry is None:
            async with self._changing:
                entry = self._entries.get(key)
                if entry is None:
                    await self._make_room()
                    entry = _Entry(subject, asyncio.create_task(_awaited(self._load(subject))))
                    self._entries[key] = entry
        self._entries.pop(key, None)
        self._entries[key] = entry
        entry.users += 1
        try:
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            if entry.has_failed and self._entries.get(key) is entry:
                del self._entries[key]

    async def drop(self, key: str) -> None:
        """Unload a thing that is of no use any more; it is loaded afresh when asked for again."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        await asyncio.wait([entry.loading])
        if not entry.has_failed:
            await self._unload(entry.subject, entry.loading.result())

    async def close(self) -> None:
        """Unload everything."""
        async with self._changing:
            for key in list(self._entries):
                await self.drop(key)

    async def _make_room(self) -> None:
        while len(self._entries) >= self._capacity:
            idle = next((key for key, e in self._entries.items() if e.users == 0), None)
            if idle is None:
                raise BackendOverloadedError
            await self.drop(idle)


async def _awaited(work: Awaitable[T]) -> T:
    return await work
