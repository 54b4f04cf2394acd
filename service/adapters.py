"""Which adapters the backend holds. One that a request uses is never pushed out."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mcq.prompts import prompt_format
from model_registry.adapter import AdapterVersion
from model_registry.follow import RegistryFollower
from service.backends.base import AdapterFiles, Backend
from service.errors import BackendOverloadedError
from service.metrics import Metrics

log = logging.getLogger("mcq.adapters")


class _Entry:
    """One adapter on its way into the backend, or in it."""

    def __init__(self, loading: asyncio.Task[AdapterFiles]) -> None:
        self.loading = loading
        self.users = 0

    @property
    def has_failed(self) -> bool:
        """Whether loading ended without the adapter in the backend."""
        if not self.loading.done():
            return False
        return self.loading.cancelled() or self.loading.exception() is not None


class AdapterCache:
    """Loads adapters when first asked for and forgets those idle longest."""

    def __init__(
        self, backend: Backend, follower: RegistryFollower, metrics: Metrics, max_adapters: int
    ) -> None:
        self._backend = backend
        self._follower = follower
        self._metrics = metrics
        self._max_adapters = max_adapters
        self._entries: dict[str, _Entry] = {}  # by digest, the one used last at the end
        self._changing = asyncio.Lock()  # one adapter at a time goes in or out

    @property
    def loaded(self) -> frozenset[str]:
        """Digests of the adapters that are ready in the backend."""
        return frozenset(
            digest
            for digest, entry in self._entries.items()
            if entry.loading.done() and not entry.has_failed
        )

    def check(self, version: AdapterVersion) -> None:
        """Refuse what cannot work here, before anything is loaded.

        Raises:
            BaseMismatchError, PrecisionMismatchError: Made for other weights.
            UnknownPromptFormatError: Made for prompts that this program does not write.
        """
        prompt_format(version.manifest.prompt_format)
        info = self._backend.info
        if info.fingerprint is not None:
            version.check_base(info.fingerprint, info.precision)

    @asynccontextmanager
    async def acquire(self, version: AdapterVersion) -> AsyncGenerator[AdapterFiles]:
        """Hold an adapter in the backend for the length of one request.

        Raises:
            AdapterRejectedError: Its tensors do not fit, or change nothing.
            BackendOverloadedError: As many others are in use as fit.
        """
        entry = self._entries.get(version.digest)
        if entry is None:
            async with self._changing:
                entry = self._entries.get(version.digest)
                if entry is None:
                    await self._make_room()
                    entry = self._begin(version)
        self._entries.pop(version.digest, None)
        self._entries[version.digest] = entry
        entry.users += 1
        try:
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            if entry.has_failed:
                self._forget(version.digest, entry)

    def _begin(self, version: AdapterVersion) -> _Entry:
        task = asyncio.create_task(self._load(version), name=f"load-{version.engine_name}")
        entry = _Entry(task)
        self._entries[version.digest] = entry
        return entry

    async def _load(self, version: AdapterVersion) -> AdapterFiles:
        with self._metrics.time_adapter_load():
            directory = await asyncio.to_thread(self._follower.fetch, version)
            files = AdapterFiles(version.engine_name, version.digest, directory)
            await self._backend.load_adapter(files)
        log.info("adapter loaded", extra={"adapter": version.engine_name})
        return files

    async def _make_room(self) -> None:
        while len(self._entries) >= self._max_adapters:
            idle = next((d for d, e in self._entries.items() if e.users == 0), None)
            if idle is None:
                raise BackendOverloadedError
            entry = self._entries.pop(idle)
            await asyncio.wait([entry.loading])
            if not entry.has_failed:
                self._metrics.adapter_evictions.inc()
                await self._backend.unload_adapter(idle)

    def _forget(self, digest: str, entry: _Entry) -> None:
        if self._entries.get(digest) is entry:
            del self._entries[digest]
