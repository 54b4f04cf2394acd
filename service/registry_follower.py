"""The registry as requests see it: the last good snapshot, in memory.

A thread of its own reads the registry every few seconds; a request does no registry I/O. When the
registry cannot be read, the last snapshot stays, and only its age tells.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from model_registry import ModelRegistry
from model_registry.adapter import AdapterRef, AdapterVersion
from model_registry.errors import RegistryError
from model_registry.snapshot import RegistrySnapshot

log = logging.getLogger("mcq.registry")


class RegistryFollower:
    """Keeps a snapshot fresh while its `running` context is open."""

    def __init__(self, registry: ModelRegistry, poll_s: float) -> None:
        self._registry = registry
        self._poll_s = poll_s
        self._snapshot = RegistrySnapshot()
        self._read_at = float("-inf")

    @property
    def snapshot(self) -> RegistrySnapshot:
        """The newest state that could be read."""
        return self._snapshot

    @property
    def age_s(self) -> float:
        """Seconds since the registry was last read."""
        return time.monotonic() - self._read_at

    def resolve(self, ref: AdapterRef | str) -> AdapterVersion:
        """The version that a reference means now; no I/O."""
        return self._snapshot.resolve(ref)

    async def fetch(self, version: AdapterVersion) -> Path:
        """A directory with the version's verified files; copied there the first time."""
        return await asyncio.to_thread(self._registry.fetch, version)

    async def refresh(self) -> None:
        """Read the registry now; a failure is logged and the old snapshot stays."""
        try:
            snapshot = await asyncio.to_thread(self._registry.snapshot)
        except (RegistryError, OSError) as error:
            log.warning("registry cannot be read, serving the last snapshot: %s", error)
            return
        if snapshot.revision != self._snapshot.revision:
            log.info("registry at revision %s", snapshot.revision)
        self._snapshot = snapshot
        self._read_at = time.monotonic()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Follow the registry for the length of the block."""
        await self.refresh()
        task = asyncio.create_task(self._follow(), name="registry-follower")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.refresh()
