"""Probes, metrics, the OpenAPI document, settings, and the process itself."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import mcq.errors
import model_registry.bases.errors
import model_registry.errors
import service.errors
from mcq.errors import McqError
from service.backends.base import Backend
from service.backends.echo import EchoBackend
from service.config import ConfigError, ServiceConfig, check_environment
from service.logs import JsonFormatter
from service.problems import PROBLEMS, kind_of
from tests.service.conftest import Serving, until

ROOT = Path(__file__).parents[2]


async def test_probes_tell_starting_from_ready(serving: Serving, context_vi: str) -> None:
    import asyncio

    opened = asyncio.Event()

    async def open_late(config: ServiceConfig) -> Backend:
        await opened.wait()
        return EchoBackend()

    async with serving(open_backend=open_late) as client:
        assert (await client.get("/health/live")).status_code == 200
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "starting")
        refused = await client.post("/generate", json={"context": context_vi})
        assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
        assert refused.headers["retry-after"] == "5"
        opened.set()
        await until(lambda: _is(client, 200))


async def _is(client: httpx.AsyncClient, status: int) -> bool:
    return (await client.get("/health/ready")).status_code == status


async def test_a_base_model_that_cannot_be_loaded_fails_the_probes(serving: Serving) -> None:
    async def open_never(config: ServiceConfig) -> Backend:
        raise OSError("no such model")

    async with serving(open_backend=open_never) as client:
        await until(lambda: _says(client, "failed"))
        assert (await client.get("/health/live")).status_code == 503
        assert (await client.get("/health/ready")).json()["detail"] == "no such model"


async def _says(client: httpx.AsyncClient, status: str) -> bool:
    return (await client.get("/health/ready")).json()["status"] == status


async def test_metrics_count_requests_questions_and_refusals(
    serving: Serving, context_vi: str
) -> None:
    async with serving() as client:
        await client.post("/generate", json={"context": context_vi, "n": 2})
        await client.post("/generate", json={"context": "ngắn"})
        await client.get("/adapters/x1")
        await client.get("/no/such/page")
        text = (await client.get("/metrics")).text
    assert 'mcq_requests_total{method="POST",route="/generate",status="200"} 1.0' in text
    assert 'mcq_requests_total{method="POST",route="/generate",status="422"} 1.0' in text
    assert 'route="/adapters/{name}",status="404"' in text
    assert "/no/such/page" not in text
    assert 'mcq_questions_total{adapter="base"} 2.0' in text
    assert "mcq_ready 1.0" in text


async def test_openapi_describes_every_route_and_its_problems(serving: Serving) -> None:
    async with serving() as client:
        schema = (await client.get("/schema/openapi.json")).json()
    registry = {path for path in schema["paths"] if path.startswith("/registry/")}
    assert schema["paths"].keys() - registry == {
        "/generate", "/adapters", "/adapters/{name}", "/health/live", "/health/ready",
    }  # fmt: skip
    documented = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [path for path in schema["paths"] if f"{path}`" not in documented] == []
    responses = schema["paths"]["/generate"]["post"]["responses"]
    assert {"200", "400", "404", "422", "503"} <= set(responses)
    assert "application/problem+json" in responses["422"]["content"]
    example = responses["200"]["content"]["application/json"]["examples"]
    assert example


def test_every_error_has_a_row() -> None:
    def leaves(cls: type[McqError]) -> set[type[McqError]]:
        below = cls.__subclasses__()
        return {cls}.union(*(leaves(sub) for sub in below)) if below else {cls}

    modules = {
        m.__name__
        for m in (mcq.errors, model_registry.errors, model_registry.bases.errors, service.errors)
    }
    ours = {cls for cls in leaves(McqError) if cls.__module__ in modules and cls is not McqError}
    unmapped = [
        cls.__name__
        for cls in ours
        if next(base for base in cls.__mro__ if base in PROBLEMS) is McqError
    ]
    assert unmapped == []
    assert kind_of(service.errors.NotReadyError("starting")).status == 503


def test_logs_are_json_and_hold_what_was_passed() -> None:
    record = logging.makeLogRecord({"msg": "đã %s", "args": ("xong",), "adapter": "a-v1"})
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["message"], entry["adapter"]) == ("đã xong", "a-v1")


def test_misspelt_settings_are_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean MCQ_BASE_MODEL"):
        check_environment({"MCQ_BASE_MODLE": "x"})
    check_environment({"MCQ_PORT": "1", "PATH": ""})


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `MCQ_([A-Z_0-9]+)` \| (?:`([^`]*)`|unset) \|", text, re.M))
    defaults = {
        name.upper(): "" if field.default is None else str(field.default)
        for name, field in ServiceConfig.model_fields.items()
    }
    assert documented == defaults


def start(tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    """`python -m service` with these settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCQ_")}
    environment |= {"MCQ_BACKEND": "echo", "MCQ_REGISTRY": str(tmp_path / "registry")} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_process_serves_and_stops_orderly(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, MCQ_PORT=str(port))
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert all(json.loads(line)["level"] in ("info", "warning") for line in log.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MCQ_PROT": "1"}, "did you mean MCQ_PORT"),
        ({"MCQ_PORT": "many"}, "MCQ_PORT: "),
        ({"MCQ_ADMIN_TOKEN": "short"}, "MCQ_ADMIN_TOKEN: Value should have at least 16"),
        ({"MCQ_PORT": "taken"}, "set MCQ_HOST or MCQ_PORT"),
        ({"MCQ_REGISTRY": "/proc/no/registry"}, "cannot be used"),
        ({"MCQ_BACKEND": "reference", "MCQ_BASE_MODEL": "/nowhere"}, "/nowhere"),
        ({"MCQ_BACKEND": "reference", "MCQ_BASE_MODEL": "embedded:x"}, "known: "),
        (
            {
                "MCQ_BACKEND": "reference",
                "MCQ_BASE_MODEL": "embedded:smollm2-135m-instruct",
                "MCQ_CACHE_DIR": f"{__file__}/cache",
            },
            "set MCQ_CACHE_DIR",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(
    settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        settings = {k: port if v == "taken" else v for k, v in settings.items()}
        process = start(tmp_path, **{"MCQ_PORT": "0", "MCQ_LOG_FORMAT": "text", **settings})
        _, log = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "Traceback" not in log
    assert said in log
