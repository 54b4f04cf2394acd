"""The real application with the echo backend, in process and on a real socket."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from litestar import Litestar

from mcq_client import AsyncMcqClient, McqClient
from service.app import create_app
from service.config import ServiceConfig

ROOT = Path(__file__).resolve().parents[2]
InProcess = Callable[[], AbstractAsyncContextManager[AsyncMcqClient]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def echo_app(folder: Path) -> Litestar:
    """The application as deployed, but for its model."""
    return create_app(ServiceConfig(backend="echo", registry=str(folder / "registry")))


@pytest.fixture
def in_process(tmp_path: Path) -> InProcess:
    """Opens an async client of the application, without a socket between them."""

    @asynccontextmanager
    async def start() -> AsyncGenerator[AsyncMcqClient]:
        app = echo_app(tmp_path)
        transport = httpx.ASGITransport(cast(Any, app))
        async with (
            app.lifespan(),
            AsyncMcqClient("http://mcq.test", transport=transport) as client,
        ):
            deadline = time.monotonic() + 10
            while not await client.is_ready():
                assert time.monotonic() < deadline, "the application never became ready"
                await asyncio.sleep(0.01)
            yield client

    return start


@pytest.fixture(scope="session")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of the application on a free port of this machine."""
    app = echo_app(tmp_path_factory.mktemp("live"))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until_ready(url, 10)
        yield url
        server.should_exit = True
        thread.join(10)


def wait_until_ready(url: str, timeout_s: float) -> None:
    """Return once the service takes requests."""
    deadline = time.monotonic() + timeout_s
    with McqClient(url) as client:
        while not client.is_ready():
            assert time.monotonic() < deadline, f"{url} never became ready"
            time.sleep(0.02)


@pytest.fixture
def until_ready() -> Callable[[str, float], None]:
    """Waits for a service that the test has started itself."""
    return wait_until_ready


@pytest.fixture
def mcq_client_command() -> Run:
    """Runs the command `mcq-client` as a process."""

    def run(
        arguments: Sequence[str], *, url: str | None = None, given: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
        if url is not None:
            environment["TRACNGHIEM_URL"] = url
        done = subprocess.run(
            [sys.executable, "-m", "mcq_client", *arguments],
            input=given,
            capture_output=True,
            env=environment,
            timeout=30,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run
