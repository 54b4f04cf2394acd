"""Opens the backend that the configuration names; heavy imports happen here, when chosen."""

import asyncio
from typing import TYPE_CHECKING

from model_registry.bases.errors import IncompleteBaseModelError
from service.backends.base import Backend
from service.backends.echo import EchoBackend
from service.config import ServiceConfig
from service.errors import NoRoomError

if TYPE_CHECKING:
    from model_registry.bases import BaseModel


async def open_backend(config: ServiceConfig) -> Backend:
    """Fetch and load what is needed, without blocking the event loop."""
    if config.backend == "echo":
        return EchoBackend()
    return await asyncio.to_thread(_open_model, config)


def _open_model(config: ServiceConfig) -> Backend:
    base = _prepare(config)
    import torch

    try:
        return _load(config, base)
    except torch.OutOfMemoryError as error:
        raise NoRoomError(base.name, "the accelerator has too little left") from error
    except ValueError as error:
        if "does not recognize this architecture" not in str(error):
            raise
        raise IncompleteBaseModelError(
            base.path,
            "architecture that transformers knows (model_type in config.json)",
            "take another model, or a newer release of this program",
        ) from error


def _load(config: ServiceConfig, base: "BaseModel") -> Backend:
    if config.backend == "reference":
        from service.backends.reference import ReferenceBackend

        return ReferenceBackend.open(base, precision=config.precision)
    from model_registry.bases.cache import default_cache_dir
    from service.backends.engine import EngineBackend

    return EngineBackend.open(
        base,
        precision=config.precision,
        max_adapters=config.max_adapters,
        cache_dir=config.cache_dir or default_cache_dir(),
    )


def _prepare(config: ServiceConfig) -> "BaseModel":
    from model_registry.bases import prepare_base

    return prepare_base(config.base_model, cache_dir=config.cache_dir)
