"""Which adapters the backend holds. One that a request uses is never pushed out."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager

from mcq.prompts import prompt_format
from model_registry.adapter import AdapterVersion
from model_registry.follow import RegistryFollower
from service.backends.base import AdapterFiles, Backend
from service.held import HeldItems
from service.metrics import Metrics

log = logging.getLogger("mcq.adapters")


class AdapterCache:
    """Loads adapters when first asked for and forgets those idle longest."""

    def __init__(
        self, backend: Backend, follower: RegistryFollower, metrics: Metrics, max_adapters: int
    ) -> None:
        self._backend = backend
        self._follower = follower
        self._metrics = metrics
        # By digest: the same content under two names is loaded once.
        self._items = HeldItems[AdapterVersion, AdapterFiles](
            max_adapters, self._load, self._unload
        )

    @property
    def loaded(self) -> frozenset[str]:
        """Digests of the adapters that are ready in the backend."""
        return self._items.loaded

    @property
    def held(self) -> tuple[AdapterVersion, ...]:
        """The versions that are in the backend or on their way."""
        return self._items.subjects

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

    def acquire(self, version: AdapterVersion) -> AbstractAsyncContextManager[AdapterFiles]:
        """Hold an adapter in the backend for the length of one request.

        Raises:
            AdapterRejectedError: Its tensors do not fit, or change nothing.
            BackendOverloadedError: As many others are in use as fit.
        """
        return self._items.acquire(version.digest, version)

    async def _load(self, version: AdapterVersion) -> AdapterFiles:
        with self._metrics.time_adapter_load():
            directory = await asyncio.to_thread(self._follower.fetch, version)
            files = AdapterFiles(version.engine_name, version.digest, directory)
            await self._backend.load_adapter(files)
        log.info("adapter loaded", extra={"adapter": version.engine_name})
        return files

    async def _unload(self, version: AdapterVersion, _: AdapterFiles) -> None:
        self._metrics.adapter_evictions.inc()
        await self._backend.unload_adapter(version.digest)
