# pyright: basic
# transformers is typed too loosely for strict mode.
"""The engine behind the backend protocol: texts, grammar, adapters by digest, scores, cancels."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcq.errors import MalformedCompletionError
from mcq.grammar import passage_characters
from mcq.prompts import prompt_format
from model_registry.bases import prepare_base
from service.backends.base import AdapterFiles, CompletionRequest, Sampling, ScoreRequest
from service.backends.engine import EngineBackend
from service.errors import AdapterRejectedError, ContextTooLongError
from tests.conftest import CONTEXT_VI
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter

CHAT = prompt_format("chat/1")
PROMPT = CHAT.render(CONTEXT_VI, "vi")
CHOICES = (" A", " B", " C", " D")


@pytest.fixture
def backend(tiny: Path, tmp_path: Path) -> Iterator[EngineBackend]:
    base = prepare_base(str(tiny), cache_dir=tmp_path / "cache", progress=False)
    sizes = replace(SIZES, max_context=2048)
    backend = EngineBackend.open(base, precision="fp32", config=sizes)
    yield backend
    asyncio.run(backend.close())


def files(directory: Path) -> AdapterFiles:
    return AdapterFiles(f"{directory.name}-v1-000000000000", f"sha256:{directory.name}", directory)


async def complete(backend: EngineBackend, request: CompletionRequest) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for delta in backend.complete(request):
        texts[delta.index] = texts.get(delta.index, "") + delta.text
    return texts


def is_read(text: str) -> bool:
    try:
        CHAT.parse(text, "vi")
    except MalformedCompletionError as error:
        return "say the same" in error.detail
    return True


async def test_every_candidate_of_every_adapter_is_a_completion_that_the_parser_reads(
    backend: EngineBackend, adapters: dict[str, Path]
) -> None:
    requests = [
        CompletionRequest(
            PROMPT,
            Sampling(temperature=0.3, seed=1, max_tokens=1500),
            adapter=adapter,
            grammar=CHAT.grammar("vi"),
            extra_characters=passage_characters(CONTEXT_VI),
            n=1 if adapter else 2,
        )
        for adapter in (None, files(adapters["plain"]), files(adapters["rslora"]))
    ]
    answers = await asyncio.gather(*(complete(backend, request) for request in requests))
    assert [sorted(texts) for texts in answers] == [[0, 1], [0], [0]]
    texts = [text for answer in answers for text in answer.values()]
    assert all(is_read(text) for text in texts), texts
    assert len(set(texts)) == 4


async def test_scores_are_those_of_a_plain_forward(
    backend: EngineBackend, tiny: Path, adapters: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompts = [CHAT.render(CONTEXT_VI + end, "vi") for end in ("", " Hết.", " Và?")]
    requests = [ScoreRequest(prompt, CHOICES, prefix="Đáp án:") for prompt in prompts]
    mixed = [*requests, ScoreRequest(PROMPT, CHOICES, "Đáp án:", files(adapters["plain"]))]
    scores = await backend.score(mixed)
    assert scores[3] != scores[0]
    for prompt, row in zip(prompts, scores, strict=False):
        text = prompt.to_text(
            lambda turns: tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        )
        ids = [
            tokenizer(text + "Đáp án:" + choice, add_special_tokens=False)["input_ids"]
            for choice in CHOICES
        ]
        shared = next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
        with torch.inference_mode():
            logits = model(torch.tensor([ids[0][:shared]])).logits[0, -1]
        expected = torch.log_softmax(logits[[tokens[shared] for tokens in ids]], -1)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


async def test_a_prompt_beyond_the_window_is_refused(backend: EngineBackend) -> None:
    with pytest.raises(ContextTooLongError):
        await complete(backend, CompletionRequest(PROMPT, Sampling(max_tokens=2048)))


async def test_an_adapter_that_does_not_fit_is_refused_and_others_go_on(
    backend: EngineBackend, tiny: Path, tmp_path: Path
) -> None:
    shapes = {
        name: (outputs, inputs + 8) for name, (outputs, inputs) in linear_shapes(tiny).items()
    }
    wrong = files(write_adapter(tmp_path / "wrong", shapes, seed=1))
    for _ in range(2):
        with pytest.raises(AdapterRejectedError):
            await backend.load_adapter(wrong)
    assert await complete(backend, CompletionRequest(PROMPT, Sampling(max_tokens=4)))


async def test_an_adapter_is_loaded_once_and_forgotten_when_unloaded(
    backend: EngineBackend, adapters: dict[str, Path]
) -> None:
    adapter = files(adapters["plain"])
    await asyncio.gather(*(backend.load_adapter(adapter) for _ in range(4)))
    store = backend._store
    assert (store.holders, store.size > 0) == (0, True)
    await backend.unload_adapter(adapter.digest)
    await backend.unload_adapter("sha256:unknown")
    assert store.size == 0


async def test_leaving_the_stream_cancels_and_gives_everything_back(
    backend: EngineBackend, adapters: dict[str, Path]
) -> None:
    request = CompletionRequest(
        PROMPT, Sampling(max_tokens=1500), adapter=files(adapters["plain"]), n=3
    )
    stream = backend.complete(request)
    await anext(stream)
    await stream.aclose()
    deadline = time.monotonic() + 5
    while backend._store.holders:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert backend.metrics.ended.get("cancelled") == 3


async def test_a_passed_deadline_ends_candidates_as_cancelled(backend: EngineBackend) -> None:
    request = CompletionRequest(PROMPT, Sampling(max_tokens=1500), n=2, deadline=time.monotonic())
    reasons = [d.finish_reason async for d in backend.complete(request) if d.finish_reason]
    assert reasons == ["cancelled", "cancelled"]


async def test_no_character_is_torn_between_two_deltas(backend: EngineBackend) -> None:
    request = CompletionRequest(
        PROMPT,
        Sampling(temperature=1.0, seed=3, max_tokens=60),
        grammar=CHAT.grammar("vi"),
    )
    pieces = [delta.text async for delta in backend.complete(request)]
    assert not any("\ufffd" in piece for piece in pieces[:-1])


async def test_a_candidate_that_is_not_wanted_ends_alone(backend: EngineBackend) -> None:
    request = CompletionRequest(PROMPT, Sampling(temperature=1.0, seed=5, max_tokens=60), n=3)
    whole = await complete(backend, request)
    beginning = whole[1][:10]
    assert not any(whole[index].startswith(beginning) for index in (0, 2)), "the seed tells them"
    picky = replace(request, is_wanted=lambda text: not text.startswith(beginning))
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    async for delta in backend.complete(picky):
        texts[delta.index] = texts.get(delta.index, "") + delta.text
        reasons[delta.index] = delta.finish_reason
    assert reasons == {0: "length", 1: "cancelled", 2: "length"}
    assert (texts[0], texts[2]) == (whole[0], whole[2])
    assert whole[1].startswith(texts[1])
    assert len(texts[1]) < len(whole[1])


@pytest.mark.parametrize("text", ["Đáp án:", "Một dòng.\nĐáp án:", "Dòng\n\nA\nAnswer", "x\n"])
async def test_choices_are_spelt_as_if_each_were_read_with_the_whole_text(
    backend: EngineBackend, tiny: Path, text: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for choices in (CHOICES, ("A", "BC", "\nD")):
        whole = [tokenizer(text + c, add_special_tokens=False)["input_ids"] for c in choices]
        assert backend._spell(text, choices, False) == whole
