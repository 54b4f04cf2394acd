"""A verifier adapter in the registry judges the candidates; without one the bare base does."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_registry import BaseFingerprint, ModelRegistry
from service.backends.base import CompletionDelta, CompletionRequest, ScoreRequest
from tests.model_registry.adapter_files import BASE, write_adapter
from tests.service.conftest import Serving
from tests.service.scripted_backend import ScriptedBackend
from tests.service.test_quality import MEMORY, SPEED, WRONG


class JudgedBackend(ScriptedBackend):
    """Says yes to a stem as surely as a test says; every reader believes in option A."""

    def __init__(self, texts: Sequence[str], sound: dict[str, float]) -> None:
        super().__init__(texts)
        self._sound = sound
        self.asked: list[str | None] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Log-odds of the stem's words against 0."""
        self.asked += [r.adapter.engine_name if r.adapter else None for r in requests]
        return [self._scores(request) for request in requests]

    def of_base(self, base: BaseFingerprint) -> None:
        """Run a base that adapters have to fit."""
        self._info = replace(self._info, fingerprint=base)

    def _scores(self, request: ScoreRequest) -> list[float]:
        if request.adapter is None:
            return [9.0, 0.0, 0.0, 0.0]
        said = request.prompt.messages[-1].content
        return [next((v for word, v in self._sound.items() if word in said), -9.0), 0.0]


class Likely(JudgedBackend):
    """Holds stems with a word likely, and the other lines of all completions unlikely."""

    def __init__(self, texts: Sequence[str], sound: dict[str, float], word: str) -> None:
        super().__init__(texts, sound)
        self._word = word

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Line by line."""
        async for delta in super().complete(request):
            lines = delta.text.splitlines(keepends=True)
            for number, line in enumerate(lines):
                is_last = number == len(lines) - 1
                likely = number == 0 and self._word in line
                yield replace(
                    delta,
                    text=line,
                    logprob=-1.0 if likely else -15.0,
                    finish_reason=delta.finish_reason if is_last else None,
                )


@pytest.fixture
def verifier(registry: ModelRegistry, tmp_path: Path) -> str:
    """Published under the name that the service looks for."""
    return publish(registry, tmp_path, BASE)


def publish(registry: ModelRegistry, tmp_path: Path, base: Any, form: str = "verdict/1") -> str:
    directory = write_adapter(tmp_path / f"verifier-{form[-1]}", b"v")
    return registry.publish(
        "mcq-verifier", directory, prompt_format=form, base=base, precision="bf16",
        languages=("vi",),
    ).engine_name  # fmt: skip


async def ask(serving: Serving, backend: Any, context: str, **fields: Any) -> Any:
    async with serving(backend, candidates_balanced=4) as client:
        answer = await client.post("/generate", json={"context": context, **fields})
    return answer.json()


async def test_the_verifier_chooses_and_says_so(
    serving: Serving, verifier: str, context_vi: str
) -> None:
    backend = JudgedBackend([WRONG, SPEED, MEMORY, "rác"], {"Nội dung RAM": 4.0, "RAM so": 1.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    (question,) = body["questions"]
    assert question["question"] == "Nội dung RAM ra sao khi tắt nguồn?"
    agrees, verified = question["checks"][-2:]
    assert (agrees["name"], agrees["passed"], agrees["detail"]) == ("verifier_agrees", True, "0.98")
    assert (verified["name"], verified["passed"]) == ("verified", True)
    assert backend.asked == [verifier] * 3, "one prompt a candidate, and no reader"


async def test_what_the_verifier_doubts_is_withheld(
    serving: Serving, verifier: str, context_vi: str
) -> None:
    body = await ask(serving, JudgedBackend([MEMORY], {}), context_vi, quality="balanced")
    assert (body["questions"], body["shortfall"]) == ([], 1)
    assert body["shortfall_reasons"]["not_verified"] == 1


async def test_of_two_that_the_verifier_likes_the_likelier_stem_comes_first(
    serving: Serving, verifier: str, context_vi: str
) -> None:
    sound = {"Nội dung RAM": 3.0, "RAM so": 3.0}
    for word in ("Nội dung", "RAM so"):
        backend = Likely([MEMORY, SPEED], sound, word)
        body = await ask(serving, backend, context_vi, quality="balanced")
        assert body["questions"][0]["question"].startswith(word)


async def test_nothing_is_judged_where_no_quality_is_asked_for(
    serving: Serving, verifier: str, context_vi: str
) -> None:
    backend = JudgedBackend([MEMORY], {})
    assert (await ask(serving, backend, context_vi, quality="fast"))["shortfall"] == 0
    assert backend.asked == []


@pytest.mark.parametrize("why", ["none", "another base", "no verifier", "switched off"])
async def test_the_base_reads_where_no_verifier_fits(
    why: str, serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    settings: dict[str, Any] = {"candidates_balanced": 1}
    backend = JudgedBackend([MEMORY], {})
    if why == "another base":
        publish(registry, tmp_path, BASE.model_copy(update={"weights": "sha256:" + "9" * 64}))
        backend.of_base(BASE)
    elif why == "no verifier":
        publish(registry, tmp_path, BASE, "chat/1")
    elif why == "switched off":
        publish(registry, tmp_path, BASE)
        settings["verifier"] = None
    async with serving(backend, **settings) as client:
        answer = await client.post("/generate", json={"context": context_vi, "quality": "balanced"})
    assert answer.status_code == 200
    assert set(backend.asked) == {None}


async def test_the_base_reads_where_the_only_place_is_taken(
    serving: Serving, verifier: str, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    directory = write_adapter(tmp_path / "writer", b"w")
    registry.publish("lop-10", directory, prompt_format="chat/1", base=BASE, precision="bf16")
    backend = JudgedBackend([MEMORY], {"Nội dung RAM": 4.0})
    asked = {"context": context_vi, "quality": "balanced", "adapter": "lop-10"}
    async with serving(backend, max_adapters=1, candidates_balanced=1) as client:
        assert (await client.post("/generate", json=asked)).status_code == 200
    assert set(backend.asked) == {None}
    backend.asked.clear()
    async with serving(backend, max_adapters=2, candidates_balanced=1) as client:
        assert (await client.post("/generate", json=asked)).status_code == 200
    assert set(backend.asked) == {verifier}
