# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Tokens that are guessed ahead change how fast an answer comes, and nothing in it."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mcq.prompts import prompt_format
from service.engine.cpu_int8 import Int8Linear
from service.engine.device_grammar import grammar_key
from service.engine.device_state import POSITION
from service.engine.drafts import Lookup
from service.engine.loading import OpenEngine, open_engine
from service.engine.sequence import EngineRequest
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter
from tests.service.engine.driving import Heard, prompt_of, read, submit

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the engine runs on the GPU")
_AHEAD = replace(SIZES, max_drafts=3, draft_rows=8)
_STEPWISE = replace(SIZES, max_drafts=0)


@pytest.fixture
def stepwise(tiny: Path) -> Iterator[OpenEngine]:
    """An engine that draws a token at a time."""
    engine = open_engine(tiny, "fp32", _STEPWISE)
    yield engine
    engine.engine.close()


@pytest.fixture
def ahead(tiny: Path) -> Iterator[OpenEngine]:
    """The same, guessing."""
    engine = open_engine(tiny, "fp32", _AHEAD)
    yield engine
    engine.engine.close()


def several(opened: OpenEngine, adapter: Path) -> list[Heard]:
    """A greedy, a sampled and an adapter's request, each with a text that repeats itself."""
    prompt = prompt_of(12) * 4
    host = read(opened, adapter)
    requests = [
        EngineRequest(prompt=prompt, max_tokens=60),
        EngineRequest(prompt=prompt, max_tokens=60, n=2, temperature=0.7, top_p=0.9, seed=3),
        EngineRequest(prompt=prompt, max_tokens=60, digest="a", adapter=host),
    ]
    alone = [submit(opened, request).wait() for request in requests]
    return alone + [heard.wait() for heard in [submit(opened, r) for r in requests]]


def test_answers_are_those_of_one_token_at_a_time(
    stepwise: OpenEngine, ahead: OpenEngine, tiny: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", linear_shapes(tiny), seed=5)
    expected, got = several(stepwise, adapter), several(ahead, adapter)
    assert [heard.tokens for heard in got] == [heard.tokens for heard in expected]
    assert [heard.finish for heard in got] == [heard.finish for heard in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    metrics = ahead.engine.metrics
    assert metrics.accepted_drafts > 20
    assert metrics.drafts > metrics.accepted_drafts, "some guesses must have been wrong"
    assert stepwise.engine.metrics.drafts == 0


@pytest.mark.parametrize("wild", [False, True], ids=["looked up", "at random"])
def test_under_a_grammar_no_guess_gets_past_it(
    stepwise: OpenEngine, ahead: OpenEngine, monkeypatch: pytest.MonkeyPatch, wild: bool
) -> None:
    if wild:  # tokens that the grammar refuses, ends, texts longer than a field
        rng, size = random.Random(1), len(ahead.tokens)
        monkeypatch.setattr(
            Lookup, "guess", lambda *_: tuple(rng.randrange(size) for _ in range(3))
        )
    key = grammar_key(prompt_format("chat/3").grammar("vi"), frozenset())

    def answer(engine: OpenEngine, seed: int) -> dict[int, list[int]]:
        request = EngineRequest(
            prompt=prompt_of(40),
            n=3,
            max_tokens=400,
            temperature=1.0,
            seed=seed,
            grammar=key,
            table=engine.compiler.compile(key),
        )
        heard = submit(engine, request).wait()
        assert heard.error is None
        return heard.tokens

    for seed in range(6):
        assert answer(ahead, seed) == answer(stepwise, seed)
    assert ahead.engine.metrics.drafts > 0


@pytest.mark.skipif(not Int8Linear.is_supported(), reason="no 8-bit kernels here")
def test_with_8_bit_weights_logits_are_the_same_to_the_bit(tiny: Path) -> None:
    request = EngineRequest(prompt=prompt_of(12) * 4, max_tokens=60)
    seen: list[dict[int, torch.Tensor]] = []
    for config in (_STEPWISE, _AHEAD):
        engine = open_engine(tiny, "bf16", replace(config, int8_on_cpu=True, block=32))
        runner, logits = engine.engine._runner, {}
        following = runner._next

        def noting(raw, rows, floats, sampling, seen=logits, following=following):
            for row, position in zip(raw, rows[:, POSITION].tolist(), strict=True):
                seen.setdefault(position, []).append(row.clone())
            return following(raw, rows, floats, sampling)

        cast("Any", runner)._next = noting
        submit(engine, request).wait()
        engine.engine.close()
        seen.append(logits)
    plain, guessing = seen
    assert plain.keys() <= guessing.keys()
    for position, rows in plain.items():
        assert any(torch.equal(rows[0], row) for row in guessing[position]), position


def test_an_answer_ends_at_its_last_token_whatever_was_guessed(ahead: OpenEngine) -> None:
    for length in range(1, 9):
        heard = submit(ahead, EngineRequest(prompt=prompt_of(8) * 5, max_tokens=length)).wait()
        assert len(heard.tokens[0]) == length
    full = EngineRequest(prompt=prompt_of(SIZES.max_context - 5), max_tokens=100)
    assert len(submit(ahead, full).wait().tokens[0]) <= 5


def test_a_guess_is_what_followed_the_last_tokens_when_they_stood_before() -> None:
    lookup, tokens = Lookup(), [1, 2, 3, 4, 9, 2, 3]
    assert lookup.guess(tokens, 2) == (4, 9)
    tokens += [7, 2, 3]
    assert lookup.guess(tokens, 3) == (7, 2, 3), "the last place counts"
    tokens.append(9)
    assert lookup.guess(tokens, 2) == (2, 3), "a single token, if the pair is new"
    tokens.append(5)
    assert lookup.guess(tokens, 2) == ()
    assert lookup.guess(tokens, 0) == ()
