# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""`variant: merged`: whole merged models beside the base, opened late, closed when idle longest."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mcq.prompts import prompt_format
from model_registry import AdapterVersion, ModelRegistry
from model_registry.adapter import Precision
from model_registry.bases import fingerprint_of
from model_registry.bases.tiny import write_tiny_model
from model_registry.follow import RegistryFollower
from model_registry.variants import MergedVariant
from service import merged
from service.backends.base import (
    AdapterFiles,
    Backend,
    BackendInfo,
    CompletionRequest,
    Sampling,
    ScoreRequest,
)
from service.backends.echo import EchoBackend
from service.backends.opening import open_backend
from service.config import ServiceConfig
from service.errors import BackendOverloadedError, MergedModelRejectedError, NoRoomError
from service.merged import MergedModels
from tests.conftest import CONTEXT_VI
from tests.service.conftest import Serving, _is_ready, until
from tests.service.reference_driving import write_adapter
from tests.service.test_adapters import publish

# PEFT asks transformers under an old name whether activations are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPT = prompt_format("chat/1").render(CONTEXT_VI, "vi")


def on_a_grid(path: Path, step: float) -> None:
    """Round weights to multiples of a step below 1, so that their sums are exact in fp16: a random
    model is so undecided between tokens that any rounding would change its answers."""
    tensors = {
        name: (tensor.float() / step).round().mul(step).clamp(-1 + step, 1 - step)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random base model."""
    directory = write_tiny_model(tmp_path_factory.mktemp("merged") / "tiny", "qwen2")
    on_a_grid(directory / "model.safetensors", 2**-8)
    return directory


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    """Two random adapters of it, of scale 1."""
    made = [write_adapter(base, base.parent / str(seed), seed, rank=16) for seed in (1, 2)]
    for directory in made:
        on_a_grid(directory / "adapter_model.safetensors", 2**-4)
    return made


@pytest.fixture
def versions(registry: ModelRegistry, base: Path, adapters: list[Path]) -> list[AdapterVersion]:
    """Three versions of one adapter; the first two are merged."""
    kinds: list[tuple[Path, Precision]] = [
        (adapters[0], "fp32"), (adapters[1], "nf4"), (adapters[1], "bf16"),
    ]  # fmt: skip
    made = [
        registry.publish(
            "lop-10", directory, prompt_format="chat/1", base=fingerprint_of(base),
            precision=precision, languages=("vi",),
        )
        for directory, precision in kinds
    ]  # fmt: skip
    registry.merge("lop-10/1", base)
    registry.merge("lop-10/2", base)
    return made


class Remembering(EchoBackend):
    """Knows its base; remembers which merged models were opened and closed."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base
        self.opened: list[ServiceConfig] = []
        self.closed: list[str] = []

    @property
    def info(self) -> BackendInfo:
        """That of a base in 16 bits."""
        return BackendInfo("echo", "tiny", fingerprint_of(self.base), "bf16", 4096, True)

    async def open(self, config: ServiceConfig) -> "EchoBackend":
        """The base first, merged models later."""
        if config.base_model == ServiceConfig().base_model:
            return self
        self.opened.append(config)
        return Merged(self, config.base_model)


class Merged(EchoBackend):
    """A merged model."""

    def __init__(self, parent: Remembering, directory: str) -> None:
        super().__init__()
        self.parent = parent
        self.directory = directory

    async def close(self) -> None:
        """Remember it."""
        self.parent.closed.append(self.directory)


def models(
    registry: ModelRegistry, backend: Remembering, **settings: object
) -> tuple[MergedModels, RegistryFollower]:
    """Merged models over a registry, and what follows it."""
    follower = RegistryFollower(lambda: registry)
    follower.refresh()
    config = ServiceConfig.model_validate({"backend": "echo", **settings})
    return MergedModels(config, backend, follower, backend.open), follower


@pytest.mark.parametrize("kind", ["reference", "engine"])
async def test_merged_weights_say_what_the_adapter_says(
    kind: str,
    registry: ModelRegistry,
    versions: list[AdapterVersion],
    base: Path,
    tmp_path: Path,
) -> None:
    follower = RegistryFollower(lambda: registry)
    follower.refresh()
    config = ServiceConfig.model_validate(
        {"backend": kind, "base_model": str(base), "precision": "fp32", "cache_dir": tmp_path}
    )
    backend = await open_backend(config)
    opened = MergedModels(config, backend, follower, open_backend)
    adapter = AdapterFiles(versions[0].engine_name, versions[0].digest, follower.fetch(versions[0]))
    choices = (" A", " B", " C", " D")

    async def answers(on: object, files: AdapterFiles | None) -> tuple[str, list[float]]:
        asked = CompletionRequest(PROMPT, Sampling(max_tokens=24), adapter=files)
        text = "".join([delta.text async for delta in on.complete(asked)])  # type: ignore[attr-defined]
        scores = await on.score([ScoreRequest(PROMPT, choices, adapter=files)])  # type: ignore[attr-defined]
        return text, scores[0]

    try:
        bare, bare_scores = await answers(backend, None)
        wanted, wanted_scores = await answers(backend, adapter)
        async with opened.acquire(opened.find(versions[0])) as model:
            text, scores = await answers(model, None)
    finally:
        await opened.close()
        await backend.close()
    assert text == wanted != bare
    assert scores == pytest.approx(wanted_scores, abs=1e-4)
    assert bare_scores != pytest.approx(wanted_scores, abs=1e-2)


@pytest.mark.parametrize("kind", ["reference", "engine"])
async def test_a_request_for_the_merged_variant_gets_the_adapters_answer(
    kind: str,
    serving: Serving,
    versions: list[AdapterVersion],
    base: Path,
    tmp_path: Path,
    context_vi: str,
) -> None:
    async def open_kind(config: ServiceConfig) -> Backend:
        return await open_backend(config.model_copy(update={"backend": kind}))

    settings = {"base_model": str(base), "precision": "fp32", "cache_dir": tmp_path}
    async with serving(open_backend=open_kind, **settings) as client:
        await until(lambda: _is_ready(client), timeout_s=60)
        asked = {"context": context_vi, "adapter": "lop-10/1", "temperature": 0.5, "seed": 1}
        answers = [
            (await client.post("/generate", json={**asked, "variant": variant})).json()
            for variant in ("adapter", "merged")
        ]
        listed = (await client.get("/adapters/lop-10")).json()["versions"]
    of_adapter, of_merged = answers
    assert (of_merged["variant"], of_adapter["variant_digest"]) == ("merged", None)
    assert of_merged["variant_digest"].startswith("sha256:")
    for answer in answers:
        for name in ("id", "variant", "variant_digest"):
            del answer[name]
        del answer["usage"]["seconds"]
        for question in answer["questions"]:
            del question["id"]
    assert of_merged == of_adapter
    assert of_merged["usage"]["completion_tokens"] > 0
    assert [version["merged"] for version in listed] == [
        None, "dequantized-fp16", "original-fp16",
    ]  # fmt: skip


async def test_a_version_without_merged_weights_says_how_to_make_them(
    serving: Serving, versions: list[AdapterVersion], context_vi: str
) -> None:
    async with serving() as client:
        answers = [
            await client.post(
                "/generate", json={"context": context_vi, "adapter": name, "variant": "merged"}
            )
            for name in ("lop-10/3", "base")
        ]
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(404, "unknown-variant")] * 2
    assert "python -m model_registry merge lop-10/3 --base" in answers[0].json()["detail"]


async def test_merged_weights_need_no_certain_precision_of_the_base_but_the_same_base(
    serving: Serving,
    registry: ModelRegistry,
    versions: list[AdapterVersion],
    base: Path,
    tmp_path: Path,
    context_vi: str,
) -> None:
    publish(registry, tmp_path, "of-another-base", 1)
    async with serving(Remembering(base)) as client:

        async def status(adapter: str, variant: str) -> tuple[int, str | None]:
            asked = {"context": context_vi, "adapter": adapter, "variant": variant}
            answer = await client.post("/generate", json=asked)
            return answer.status_code, answer.json().get("code")

        assert await status("lop-10/2", "adapter") == (409, "precision-mismatch")
        assert await status("lop-10/2", "merged") == (200, None)
        for variant in ("adapter", "merged"):
            assert await status("of-another-base", variant) == (409, "base-mismatch")


async def test_the_one_idle_longest_is_closed_and_one_in_use_stays(
    registry: ModelRegistry, versions: list[AdapterVersion], base: Path
) -> None:
    backend = Remembering(base)
    opened, _ = models(registry, backend)
    one, two = opened.find(versions[0]), opened.find(versions[1])
    async with opened.acquire(one):
        with pytest.raises(BackendOverloadedError):
            async with opened.acquire(two):
                pass
        assert opened.loaded == {one.digest}
    async with opened.acquire(two):
        assert opened.loaded == {two.digest}
        assert [Path(path).name for path in backend.closed] == [one.digest[7:]]
    await opened.close()
    assert len(backend.closed) == 2


async def test_requests_that_come_together_open_a_variant_once(
    registry: ModelRegistry, versions: list[AdapterVersion], base: Path
) -> None:
    backend = Remembering(base)
    opened, _ = models(registry, backend)
    variant = opened.find(versions[0])

    async def use() -> None:
        async with opened.acquire(variant):
            await asyncio.sleep(0)

    await asyncio.gather(*(use() for _ in range(5)))
    assert len(backend.opened) == 1


@pytest.mark.parametrize(
    ("asked", "used"),
    [("auto", "auto"), ("fp32", "fp32"), ("nf4", "fp16"), ("dequantized", "fp16")],
)
async def test_merged_weights_are_never_rounded_to_4_bits_again(
    asked: str, used: str, registry: ModelRegistry, versions: list[AdapterVersion], base: Path
) -> None:
    backend = Remembering(base)
    opened, _ = models(registry, backend, precision=asked)
    async with opened.acquire(opened.find(versions[1])):
        assert [config.precision for config in backend.opened] == [used]


async def test_what_does_not_fit_or_overflows_is_refused_and_leaves_nothing_behind(
    registry: ModelRegistry,
    versions: list[AdapterVersion],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Overflowing(Merged):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
            return [[math.nan] * 4 for _ in requests]

    class Parent(Remembering):
        async def open(self, config: ServiceConfig) -> EchoBackend:
            return Overflowing(self, config.base_model)

    backend = Parent(base)
    opened, _ = models(registry, backend)
    variant: MergedVariant = opened.find(versions[0])
    with pytest.raises(MergedModelRejectedError, match="--dtype bf16"):
        async with opened.acquire(variant):
            pass
    assert len(backend.closed) == 1
    monkeypatch.setattr(merged, "free_memory", lambda: 1000)
    with pytest.raises(NoRoomError, match=r"0\.0 GB are free"):
        async with opened.acquire(variant):
            pass
    assert opened.held == ()


async def test_a_server_that_holds_no_merged_models_says_so(
    serving: Serving, versions: list[AdapterVersion], context_vi: str
) -> None:
    async with serving(max_merged=0) as client:
        asked = {"context": context_vi, "adapter": "lop-10/1", "variant": "merged"}
        answer = await client.post("/generate", json=asked)
        listed = (await client.get("/adapters/lop-10")).json()["versions"]
    assert answer.json()["code"] == "unknown-variant"
    assert {version["merged"] for version in listed} == {None}
