"""The running parts of one server, and the state they are in: starting, ready, draining, failed."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from mcq.errors import McqError
from model_registry import ModelRegistry
from model_registry.adapter import AdapterVersion
from model_registry.follow import RegistryFollower
from service.adapters import AdapterCache
from service.backends.base import Backend
from service.backends.collector import EngineCollector, Measured
from service.config import ServiceConfig
from service.errors import NotReadyError
from service.generator import QuestionGenerator
from service.leases import LeaseKeeper
from service.merged import MergedModels, OpenBackend
from service.metrics import Metrics
from service.planning import Planner
from service.schema import Health

log = logging.getLogger("mcq.runtime")


class Runtime:
    """Opens the backend beside the running server, so that probes are answered meanwhile."""

    def __init__(
        self,
        config: ServiceConfig,
        open_registry: Callable[[], ModelRegistry],
        open_backend: OpenBackend,
    ) -> None:
        self.config = config
        self.metrics = Metrics()
        self.follower = RegistryFollower(
            open_registry,
            state_file=config.registry_state_file,
            interval_s=config.registry_poll_s,
        )
        self._open_backend = open_backend
        self._backend: Backend | None = None
        self._generator: QuestionGenerator | None = None
        self._adapters: AdapterCache | None = None
        self._merged: MergedModels | None = None
        self._leases = LeaseKeeper(self.follower, self._served, config.registry_poll_s)
        self._failure: str | None = None
        self._is_draining = False
        self.on_failure: Callable[[], None] | None = None
        """Called when the backend cannot be opened; the process is of no use then."""

    @property
    def health(self) -> Health:
        """What `GET /health/ready` says."""
        if self._failure is not None:
            return Health(status="failed", detail=self._failure)
        if self._is_draining:
            return Health(status="draining", detail="stopping")
        if self._backend is None:
            return Health(status="starting", detail="loading the base model")
        if not self._backend.is_healthy:
            return Health(status="failed", detail="the model has stopped")
        return Health(status="ok")

    @property
    def backend(self) -> Backend:
        """The open backend, or NotReadyError."""
        if self._backend is None or self._is_draining:
            raise NotReadyError(self.health.status)
        return self._backend

    @property
    def generator(self) -> QuestionGenerator:
        """What answers requests, or NotReadyError."""
        if self._generator is None or self.health.status != "ok":
            raise NotReadyError(self.health.status)
        return self._generator

    @property
    def adapters(self) -> AdapterCache:
        """The adapters that the backend holds, or NotReadyError."""
        if self._adapters is None:
            raise NotReadyError(self.health.status)
        return self._adapters

    @property
    def merged(self) -> MergedModels:
        """The merged variants that are open, or NotReadyError."""
        if self._merged is None:
            raise NotReadyError(self.health.status)
        return self._merged

    def _served(self) -> list[AdapterVersion]:
        """Every version that this replica has in memory, in whatever form."""
        if self._adapters is None or self._merged is None:
            return []
        merged = [self.follower.snapshot.known(variant.ref) for variant in self._merged.held]
        return [*self._adapters.held, *(version for version in merged if version is not None)]

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The server's life: follow the registry, open the backend, close both."""
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(self._open(), name="open-backend")
            renewing = asyncio.create_task(self._leases.run(), name="leases")
            stack.push_async_callback(asyncio.to_thread, self.follower.stop)
            try:
                yield
            finally:
                self._is_draining = True
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await opening
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
                await self._leases.release()
                if self._merged is not None:
                    await self._merged.close()
                if self._backend is not None:
                    await self._backend.close()

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self.follower.start)
            backend = await self._open_backend(self.config)
        except Exception as error:
            known = isinstance(error, McqError | OSError)
            self._failure = str(error) if known else "the service cannot start; see the log"
            log.error(self._failure, exc_info=None if known else error)
            if self.on_failure is not None:
                self.on_failure()
            return
        self._backend = backend
        if isinstance(backend, Measured):
            self.metrics.registry.register(EngineCollector(backend))
        self._adapters = AdapterCache(
            backend, self.follower, self.metrics, self.config.max_adapters
        )
        self._merged = MergedModels(self.config, backend, self.follower, self._open_backend)
        planner = Planner(backend, self._adapters, self._merged, self.follower, self.config)
        self._generator = QuestionGenerator(
            backend, self._adapters, self._merged, planner, self.metrics
        )
        log.info("ready", extra={"base_model": backend.info.base_model})
