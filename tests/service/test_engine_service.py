# pyright: basic
# torch, which the engine's parts handle, is typed too loosely for strict mode.
"""`POST /generate` over the engine: each adapter answers among others as it does alone."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_registry import ModelRegistry
from model_registry.bases import fingerprint_of, prepare_base
from model_registry.bases.tiny import write_tiny_model
from service.backends.base import CompletionDelta, CompletionRequest
from service.backends.engine import EngineBackend
from service.config import ServiceConfig
from tests.service.conftest import Serving, _is_ready, until
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter

NAMES = ("base", "lop-10", "lop-11")


class OverheardEngine(EngineBackend):
    """Keeps every completion of every adapter: a random model writes much that is no question."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.heard: defaultdict[str, list[str]] = defaultdict(list)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Pass it on."""
        texts = [""] * request.n
        async for delta in super().complete(request):
            texts[delta.index] += delta.text
            yield delta
        name = request.adapter.engine_name.split("-v")[0] if request.adapter else "base"
        self.heard[name] += texts

    def take(self) -> dict[str, list[str]]:
        """What was heard since the last time."""
        taken = {name: sorted(texts) for name, texts in self.heard.items()}
        self.heard.clear()
        return taken


async def generate(client: httpx.AsyncClient, context: str, adapter: str) -> Any:
    """One answer, without what differs from request to request."""
    asked = {"context": context, "adapter": adapter, "n": 2, "temperature": 0.7, "seed": 5}
    answer = await client.post("/generate", json=asked)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    del body["id"], body["usage"]["seconds"]
    return body


@pytest.mark.slow
async def test_two_adapters_asked_for_at_once_each_answer_as_they_do_alone(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    tiny = write_tiny_model(tmp_path / "tiny")
    for seed, name in enumerate(NAMES[1:]):
        directory = write_adapter(tmp_path / name, linear_shapes(tiny), seed=seed, r=4 + 4 * seed)
        registry.publish(
            name, directory, prompt_format="chat/1", base=fingerprint_of(tiny), precision="fp32"
        )
    opened: list[OverheardEngine] = []

    async def open_overheard(config: ServiceConfig) -> OverheardEngine:
        base = prepare_base(str(tiny), cache_dir=tmp_path / "cache", progress=False)
        sizes = replace(SIZES, max_context=2048)
        opened.append(OverheardEngine.open(base, precision="fp32", config=sizes))
        return opened[0]

    async with serving(open_backend=open_overheard, candidates_per_question=1) as client:
        await until(lambda: _is_ready(client), timeout_s=60)
        alone = {name: await generate(client, context_vi, name) for name in NAMES}
        heard_alone = opened[0].take()
        asked = [*NAMES, *reversed(NAMES)]
        together = await asyncio.gather(*(generate(client, context_vi, name) for name in asked))
        heard_together = opened[0].take()

    texts = [text for name in NAMES for text in heard_alone[name]]
    assert len(set(texts)) == len(texts) == 2 * len(NAMES)
    assert together == [alone[name] for name in asked]
    assert heard_together == {name: sorted(heard_alone[name] * 2) for name in NAMES}


async def test_what_the_engine_counts_can_be_scraped(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    tiny = write_tiny_model(tmp_path / "tiny")
    directory = write_adapter(tmp_path / "lop-10", linear_shapes(tiny), seed=1, r=4)
    registry.publish(
        "lop-10", directory, prompt_format="chat/1", base=fingerprint_of(tiny), precision="fp32"
    )

    async def open_engine(config: ServiceConfig) -> EngineBackend:
        base = prepare_base(str(tiny), cache_dir=tmp_path / "cache", progress=False)
        return EngineBackend.open(
            base, precision="fp32", config=replace(SIZES, max_context=2048, max_sequences=3)
        )

    async with serving(open_backend=open_engine, candidates_per_question=1) as client:
        await until(lambda: _is_ready(client), timeout_s=60)
        for adapter in ("base", "lop-10", "lop-10"):
            await generate(client, context_vi, adapter)
        page = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(page)}

    def value(family: str, suffix: str = "", **labels: str) -> float:
        return next(
            sample.value
            for sample in families[f"mcq_engine_{family}"].samples
            if sample.name == f"mcq_engine_{family}{suffix}" and sample.labels == labels
        )

    candidates = 3 * 2
    assert value("requests", "_total") >= 3
    assert sum(sample.value for sample in families["mcq_engine_sequences"].samples) == candidates
    assert value("tokens", "_total", adapter="lop-10") > 0
    assert value("tokens", "_total", adapter="base") > 0
    assert value("first_token_seconds", "_count") == candidates
    assert value("first_token_seconds", "_bucket", le="+Inf") == candidates
    assert value("between_tokens_seconds", "_sum") > 0
    assert value("reused_tokens", "_total") > 0
    assert (value("slots"), value("running"), value("waiting")) == (3, 0, 0)
    assert value("adapter_loads", "_total") >= 1
