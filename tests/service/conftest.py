"""The real application over an echo backend and a registry in a temporary directory."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from model_registry import ModelRegistry
from service.app import create_app
from service.backends.base import Backend
from service.backends.echo import EchoBackend
from service.config import ServiceConfig

Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """An empty registry."""
    return ModelRegistry.open(tmp_path / "registry", actor="tester")


@pytest.fixture
def serving(registry: ModelRegistry) -> Serving:
    """Starts the application with some backend and settings; ready when the block begins."""

    @asynccontextmanager
    async def start(
        backend: Backend | None = None,
        open_backend: Callable[[ServiceConfig], Awaitable[Backend]] | None = None,
        **settings: Any,
    ) -> AsyncGenerator[httpx.AsyncClient]:
        async def open_given(config: ServiceConfig) -> Backend:
            return backend or EchoBackend()

        config = ServiceConfig.model_validate(
            {"backend": "echo", "registry_poll_s": 0.05, **settings}
        )
        app = create_app(config, registry, open_backend or open_given)
        transport = httpx.ASGITransport(cast(Any, app), raise_app_exceptions=False)
        async with (
            app.lifespan(),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            if open_backend is None:
                await until(lambda: _is_ready(client))
            yield client

    return start


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.01)
