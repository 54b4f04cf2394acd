"""Merged variants: whole models of their own, each behind a second backend of the same kind.

Each costs as much memory as the base, so few are held, and none is opened before it is asked for.
"""

import asyncio
import gc
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from mcq.prompts import prompt_format
from mcq.question import LETTERS
from model_registry.adapter import AdapterVersion
from model_registry.follow import RegistryFollower
from model_registry.variants import MergedVariant
from service.backends.base import Backend, ScoreRequest
from service.backends.memory import free_memory
from service.config import ServiceConfig
from service.errors import MergedModelRejectedError, NoRoomError, UnknownVariantError
from service.held import HeldItems

log = logging.getLogger("mcq.merged")

OpenBackend = Callable[[ServiceConfig], Awaitable[Backend]]


class MergedModels:
    """Opens merged variants when first asked for and closes those idle longest."""

    def __init__(
        self,
        config: ServiceConfig,
        backend: Backend,
        follower: RegistryFollower,
        open_backend: OpenBackend,
    ) -> None:
        self._config = config
        self._backend = backend
        self._follower = follower
        self._open_backend = open_backend
        self._items = HeldItems[MergedVariant, Backend](config.max_merged, self._open, self._close)

    @property
    def loaded(self) -> frozenset[str]:
        """Digests of the variants that are ready."""
        return self._items.loaded

    @property
    def held(self) -> tuple[MergedVariant, ...]:
        """The variants that are open or being opened."""
        return self._items.subjects

    def find(self, version: AdapterVersion) -> MergedVariant:
        """The variant that stands for a version here, without any I/O.

        The precision of the loaded base does not matter: a variant brings weights of its own.

        Raises:
            VariantNotFoundError: The version has not been merged.
            UnknownVariantError: This server holds no merged variants.
            BaseMismatchError: It grew from another base than this server is about.
            UnknownPromptFormatError: Made for prompts that this program does not write.
        """
        prompt_format(version.manifest.prompt_format)
        if self._config.max_merged == 0:
            raise UnknownVariantError(version.name, "merged", ("adapter",))
        fingerprint = self._backend.info.fingerprint
        if fingerprint is not None:
            version.check_base(fingerprint)
        return self._follower.snapshot.variant(version)

    @asynccontextmanager
    async def acquire(self, variant: MergedVariant) -> AsyncGenerator[Backend]:
        """Hold a variant for the length of one request; opens it first, which takes seconds.

        Raises:
            NoRoomError: It does not fit into memory.
            BackendOverloadedError: As many others are in use as may be held.
        """
        async with self._items.acquire(variant.digest, variant) as backend:
            try:
                yield backend
            finally:
                if not backend.is_healthy:
                    await self._items.drop(variant.digest)

    async def close(self) -> None:
        """Close all of them."""
        await self._items.close()

    async def _open(self, variant: MergedVariant) -> Backend:
        directory = await asyncio.to_thread(self._follower.fetch_variant, variant)
        precision = self._precision(variant)
        needed = variant.size * (2 if precision == "fp32" else 1)
        await asyncio.to_thread(gc.collect)  # what was closed a moment ago leaves its memory now
        free = await asyncio.to_thread(free_memory)
        if free is not None and free < needed:
            detail = f"it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
            raise NoRoomError(variant.engine_name, detail)
        source = {"base_model": str(directory.resolve()), "precision": precision, "max_adapters": 1}
        try:
            backend = await self._open_backend(self._config.model_copy(update=source))
        except NoRoomError as error:
            raise NoRoomError(variant.engine_name, error.detail) from error
        try:
            await _require_finite(backend, variant)
        except BaseException:
            await backend.close()
            raise
        log.info("merged variant opened", extra={"adapter": variant.engine_name})
        return backend

    async def _close(self, variant: MergedVariant, backend: Backend) -> None:
        await backend.close()
        log.info("merged variant closed", extra={"adapter": variant.engine_name})

    def _precision(self, variant: MergedVariant) -> str:
        """Its own, unless the operator wants 32 bits, or what is fastest here; never 4 bits again,
        which would erase the adapter."""
        wanted = self._config.precision
        return wanted if wanted in ("auto", "fp32") else variant.manifest.dtype


async def _require_finite(backend: Backend, variant: MergedVariant) -> None:
    """fp16 ends at 65,504: a model that needs more answers nonsense, without an error."""
    name = "chat/1" if backend.info.supports_chat else "instruct-vi/1"
    prompt = prompt_format(name).render("Nước sôi ở 100 độ.\n" * 8, "vi")
    choices = tuple(f" {letter}" for letter in LETTERS)
    (scores,) = await backend.score([ScoreRequest(prompt, choices)])
    if not all(math.isfinite(score) for score in scores):
        raise MergedModelRejectedError(variant.engine_name, str(variant.ref))
