"""The client against the real application: each understands what the other sends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mcq_client import AsyncMcqClient, McqClient, errors

InProcess = Callable[[], AbstractAsyncContextManager[AsyncMcqClient]]
ROOT = Path(__file__).resolve().parents[2]


async def test_a_generation_comes_back_whole(in_process: InProcess, context_vi: str) -> None:
    async with in_process() as client:
        generation = await client.generate(
            context_vi,
            n=3,
            adapter="base",
            variant="adapter",
            language="auto",
            temperature=0.7,
            top_p=0.9,
            seed=1,
            avoid=("RAM là gì?",),
            quality="fast",
        )

        assert (generation.base_model, generation.adapter, generation.language) == (
            "echo",
            None,
            "vi",
        )
        assert len(generation.questions) + generation.shortfall == 3
        assert generation.usage.completion_tokens > 0
        assert generation.questions[0].key_text in generation.questions[0].options.values()


async def test_a_stream_says_the_same_as_a_plain_answer(
    in_process: InProcess, context_en: str
) -> None:
    async with in_process() as client:
        plain = await client.generate(context_en, n=3, seed=5)
        async with client.stream(context_en, n=3, seed=5) as stream:
            questions = [question async for question in stream]

        assert tuple(questions) == plain.questions
        assert stream.started is not None
        assert stream.generation is not None
        assert stream.started.id == stream.generation.id
        assert stream.generation.questions == plain.questions
        assert stream.generation.usage.candidates == plain.usage.candidates


async def test_evidence_indexes_the_context(in_process: InProcess, context_vi: str) -> None:
    async with in_process() as client:
        generation = await client.generate(context_vi, n=5, seed=2)

        found = [question.evidence for question in generation.questions if question.evidence]
        assert found
        for evidence in found:
            assert context_vi[evidence.start : evidence.end] == evidence.text


async def test_refusals_arrive_as_typed_errors(in_process: InProcess, context_vi: str) -> None:
    async with in_process() as client:
        with pytest.raises(errors.InvalidContextError) as short:
            await client.generate("quá ngắn")
        assert short.value.code == "context-too-short"
        with pytest.raises(errors.InvalidContextError) as empty:
            await client.generate("  ")
        assert empty.value.code == "context-empty"
        with pytest.raises(errors.UnknownAdapterError, match="ghost"):
            await client.generate(context_vi, adapter="ghost")
        with pytest.raises(errors.UnknownAdapterError, match="ghost"):
            async with client.stream(context_vi, adapter="ghost") as stream:
                _ = [question async for question in stream]
        with pytest.raises(errors.InvalidRequestError) as many:
            await client.generate(context_vi, n=0)
        assert [error["field"] for error in many.value.errors] == ["n"]
        with pytest.raises(errors.UnknownAdapterError):
            await client.adapter("ghost")


async def test_an_empty_registry_lists_its_base_model(in_process: InProcess) -> None:
    async with in_process() as client:
        assert await client.is_ready()
        listing = await client.adapters()

        assert listing.base_model["name"] == "echo"
        assert (listing.default, listing.adapters) == (None, ())


def test_the_blocking_client_streams_over_a_socket(live_url: str, context_vi: str) -> None:
    with McqClient(live_url) as client:
        with client.stream(context_vi, n=4, seed=3) as stream:
            first = next(iter(stream))
            rest = list(stream)
        again = client.generate(context_vi, n=4, seed=3)

    assert (first, *rest) == again.questions


def test_leaving_a_stream_early_leaves_the_client_usable(live_url: str, context_vi: str) -> None:
    with McqClient(live_url) as client:
        with client.stream(context_vi, n=5) as stream:
            next(iter(stream))
        assert stream.generation is None
        assert client.generate(context_vi).questions


def test_python_m_service_answers_the_client(
    tmp_path: Path, context_vi: str, until_ready: Callable[[str, float], None]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"BACKEND": "echo", "PORT": str(port), "REGISTRY": str(tmp_path / "registry")}
    server = subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env={**os.environ, **{f"MCQ_{name}": value for name, value in settings.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until_ready(url, 30)
        with McqClient(url) as client, client.stream(context_vi, n=2, seed=1) as stream:
            assert len(list(stream)) == 2
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
