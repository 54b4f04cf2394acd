# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""The oracle itself: what transformers and PEFT give directly, through the backend."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcq.grammar import Choice, CompletionGrammar, Field, Text
from mcq.prompts import Prompt, prompt_format
from model_registry.bases import prepare_base
from model_registry.bases.tiny import write_tiny_model
from service.backends.base import (
    AdapterFiles,
    CompletionRequest,
    Sampling,
    ScoreRequest,
)
from service.backends.reference import ReferenceBackend
from service.errors import (
    BackendError,
    BackendFailedError,
    BackendOverloadedError,
    ContextTooLongError,
)
from tests.service.reference_driving import (
    PLAIN,
    PROMPT,
    collect,
    files,
    greedy,
    texts,
    write_adapter,
)

# PEFT asks transformers under an old name whether activations are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

GRAMMAR = prompt_format("chat/1").grammar("vi")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("reference") / "tiny", "qwen2")


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[AdapterFiles]:
    return [
        files(write_adapter(base, base.parent / "first", 1), "a"),
        files(write_adapter(base, base.parent / "second", 2, rank=8, use_rslora=True), "b"),
    ]


@pytest.fixture
async def backend(base: Path, tmp_path: Path) -> AsyncGenerator[ReferenceBackend]:
    opened = ReferenceBackend.open(prepare_base(str(base), tmp_path), "fp32", "cpu")
    yield opened
    await opened.close()


def directly(base: Path, adapter: AdapterFiles | None, tokens: int = 24) -> str:
    """The same greedy completion without any of our code."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.directory)
    ids = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in PROMPT.messages],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    # The rows that pad the matrix have no text; a random model would choose them now and then.
    padding = list(range(len(tokenizer), model.config.vocab_size))
    output = model.generate(**ids, do_sample=False, max_new_tokens=tokens, suppress_tokens=padding)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


async def test_it_says_what_transformers_and_peft_say(
    backend: ReferenceBackend, base: Path, adapters: list[AdapterFiles]
) -> None:
    for adapter in (None, *adapters, None):
        assert await texts(backend, greedy(adapter=adapter)) == [directly(base, adapter)]


async def test_concurrent_requests_for_different_adapters_answer_as_each_does_alone(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    choices = [None, *adapters]
    alone = [await texts(backend, greedy(adapter=adapter)) for adapter in choices]
    assert len({text for (text,) in alone}) == 3
    together = await asyncio.gather(
        *(texts(backend, greedy(adapter=adapter)) for adapter in choices * 4)
    )
    assert together == alone * 4


async def test_a_grammar_makes_every_completion_parse(backend: ReferenceBackend) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3, max_tokens=1500)
    request = CompletionRequest(PROMPT, sampling, grammar=GRAMMAR)
    deltas = await collect(backend, request)
    text = "".join(delta.text for delta in deltas)
    assert GRAMMAR.accepts(text), text
    prompt_format("chat/1").parse(text, "vi")
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]


async def test_a_field_is_closed_before_it_is_too_long(backend: ReferenceBackend) -> None:
    short = CompletionGrammar(
        "vi", (Text("X: "), Field("x", 60), Text("\nY: "), Choice("y", ("A", "B")))
    )
    request = CompletionRequest(
        PROMPT, Sampling(temperature=1.0, seed=1, max_tokens=200), grammar=short, n=4
    )
    answers = await texts(backend, request)
    for text in answers:
        assert short.accepts(text), text
    assert max(len(text.split("\n")[0]) for text in answers) == len("X: ") + 60


async def test_characters_of_the_passage_are_admitted_and_no_others(
    backend: ReferenceBackend,
) -> None:
    grammar = CompletionGrammar("en", (Text("X: "), Field("x", 90), Text("\nY")))
    sampling = Sampling(temperature=2.0, seed=5, max_tokens=200)
    plain = CompletionRequest(PROMPT, sampling, grammar=grammar, n=3)
    admitted = CompletionRequest(
        PROMPT, sampling, grammar=grammar, extra_characters=frozenset("ôồộữắ"), n=3
    )
    assert not set("".join(await texts(backend, plain))) & set("ôồộữắ")
    assert set("".join(await texts(backend, admitted))) & set("ôồộữắ")


async def test_a_seed_fixes_each_candidate_and_candidates_differ(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    def sampled(seed: int | None, n: int) -> CompletionRequest:
        return CompletionRequest(PROMPT, Sampling(1.0, 0.9, seed, 16), adapters[0], n=n)

    three = await texts(backend, sampled(7, 3))
    assert len(set(three)) == 3
    busy = await asyncio.gather(*(texts(backend, sampled(seed, 3)) for seed in (8, 7, None)))
    assert busy[1] == three
    assert await texts(backend, sampled(7, 1)) == three[:1]
    assert await texts(backend, sampled(8, 1)) != three[:1]


async def test_several_candidates_equal_one_at_a_time(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    one = await texts(backend, greedy(adapter=adapters[1]))
    assert await texts(backend, greedy(adapter=adapters[1], n=3)) == one * 3


async def test_tokens_stream_and_are_counted(backend: ReferenceBackend) -> None:
    deltas = await collect(backend, greedy(PLAIN, tokens=30))
    assert len(deltas) > 5
    assert sum(delta.tokens for delta in deltas) == 30
    assert [delta.prompt_tokens for delta in deltas] == [backend.count_tokens(PLAIN)] + [0] * (
        len(deltas) - 1
    )
    assert deltas[-1].finish_reason == "length"


async def test_no_piece_of_the_stream_ends_inside_a_character(backend: ReferenceBackend) -> None:
    request = CompletionRequest(
        PROMPT, Sampling(temperature=1.0, seed=2, max_tokens=100), grammar=GRAMMAR
    )
    deltas = await collect(backend, request)
    assert all("\ufffd" not in delta.text for delta in deltas[:-1])


async def test_closing_the_stream_frees_the_backend(backend: ReferenceBackend) -> None:
    stream = backend.complete(greedy(tokens=3000))
    await anext(stream)
    await stream.aclose()
    started = time.monotonic()
    await texts(backend, greedy(tokens=2))
    assert time.monotonic() - started < 2


async def test_a_queue_that_is_full_refuses_at_once(backend: ReferenceBackend) -> None:
    answers = await asyncio.gather(
        *(texts(backend, greedy(tokens=1)) for _ in range(80)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, BackendOverloadedError)]
    assert len(refused) == 80 - 64
    assert await texts(backend, greedy(tokens=1)) == answers[0]


async def test_a_request_fails_alone(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    alone = await texts(backend, greedy(adapter=adapters[0]))
    failed, answer = await asyncio.gather(
        texts(backend, greedy(Prompt(plain=""), adapter=adapters[1])),  # no tokens, no logits
        texts(backend, greedy(adapter=adapters[0])),
        return_exceptions=True,
    )
    assert isinstance(failed, BackendFailedError)
    assert answer == alone
    assert backend.is_healthy


async def test_closing_the_backend_ends_what_runs_and_what_waits(
    base: Path, tmp_path: Path
) -> None:
    backend = ReferenceBackend.open(prepare_base(str(base), tmp_path), "fp32", "cpu")
    streams = [asyncio.ensure_future(collect(backend, greedy(tokens=3000))) for _ in range(3)]
    await asyncio.sleep(0.1)
    await backend.close()
    running, *waiting = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 5)
    assert isinstance(running, list)
    assert running[-1].finish_reason == "cancelled"
    assert [type(error) for error in waiting] == [BackendFailedError] * 2
    assert not backend.is_healthy
    with pytest.raises(BackendFailedError):
        await backend.score([ScoreRequest(PLAIN, "AB")])


async def test_a_deadline_ends_every_candidate(backend: ReferenceBackend) -> None:
    request = CompletionRequest(
        PROMPT, Sampling(max_tokens=3000), n=2, deadline=time.monotonic() + 0.3
    )
    deltas = await collect(backend, request)
    ends = [(d.index, d.finish_reason) for d in deltas if d.finish_reason]
    assert ends == [(0, "cancelled"), (1, "cancelled")]


async def test_a_prompt_beyond_the_window_is_refused(backend: ReferenceBackend) -> None:
    long = Prompt(plain="nước " * 5000)
    with pytest.raises(ContextTooLongError):
        await collect(backend, greedy(long))


async def test_scores_are_the_models_own(
    backend: ReferenceBackend, base: Path, adapters: list[AdapterFiles]
) -> None:
    requests = [
        ScoreRequest(PLAIN, ("A", "B", "C", "D"), "Đáp án: ", adapter)
        for adapter in (None, *adapters)
    ]
    scores = await backend.score(requests)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for request, row in zip(requests, scores, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base)
        if request.adapter is not None:
            model = PeftModel.from_pretrained(model, request.adapter.directory)
        prompt = tokenizer(PLAIN.plain + "Đáp án:", return_tensors="pt").input_ids
        letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
        with torch.inference_mode():
            logits = model(prompt).logits[0, -1]
        expected = torch.log_softmax(logits[letters], -1)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


async def test_prompts_scored_together_score_as_each_does_alone(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    requests = [
        ScoreRequest(Prompt(plain=PLAIN.plain + more), ("A", "B", "C"), "Đáp án: ", adapter)
        for more in ("", "Sông Hồng. ", "Nước sôi ở một trăm độ. " * 4, "Sông. " * 9)
        for adapter in (None, *adapters)
    ]
    alone = [(await backend.score([request]))[0] for request in requests]
    together = await backend.score(requests)
    for row, expected in zip(together, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    assert await backend.score([]) == []
    twice = await backend.score([requests[0]] * 2)
    assert twice[0] == pytest.approx(alone[0], abs=1e-4)


async def test_choices_that_begin_alike_are_refused(backend: ReferenceBackend) -> None:
    with pytest.raises(ValueError, match="first token"):
        await backend.score([ScoreRequest(PLAIN, ("nước A", "nước B", "X"))])


async def test_an_unloaded_adapter_comes_back_when_it_is_asked_for(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    before = await texts(backend, greedy(adapter=adapters[0]))
    await backend.load_adapter(adapters[0])
    await backend.unload_adapter(adapters[0].digest)
    await backend.unload_adapter("sha256:unknown")
    assert await texts(backend, greedy(adapter=adapters[0])) == before


async def test_16_bits_on_the_cpu_stay_close_to_32(
    base: Path, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    prepared = prepare_base(str(base), tmp_path)
    requests = [ScoreRequest(PLAIN, "ABCD", "Đáp án: ", a) for a in (None, *adapters)]
    rows = []
    for precision in ("fp32", "bf16"):
        backend = ReferenceBackend.open(prepared, precision, "cpu")
        assert backend.info.precision == precision
        rows.append(torch.tensor(await backend.score(requests)))
        await backend.close()
    assert (rows[0] - rows[1]).abs().max() < 0.5
    assert not torch.equal(*rows)


async def test_an_unknown_precision_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="int3"):
        ReferenceBackend.open(prepare_base(str(base), tmp_path), "int3")


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3"])
async def test_other_architectures_work_the_same(architecture, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny", architecture)
    adapter = files(write_adapter(path, tmp_path / "adapter", 1), "a")
    backend = ReferenceBackend.open(prepare_base(str(path), tmp_path / "cache"), "fp32", "cpu")
    for acting in (None, adapter):
        assert await texts(backend, greedy(adapter=acting)) == [directly(path, acting)]
    long = Prompt(plain=PLAIN.plain * 4)  # longer than Gemma's window
    asked = [ScoreRequest(long, "AB", prefix) for prefix in ("Đáp án: ", "Sông Hồng: ", "", "1 ")]
    together = await backend.score(asked)
    for request, row in zip(asked, together, strict=True):
        assert row == pytest.approx((await backend.score([request]))[0], abs=1e-4)
    await backend.close()
