# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Draws obey temperature, nucleus and seed, whatever else is in the batch."""

from pathlib import Path

import pytest
import torch

from service.engine.loading import OpenEngine
from service.engine.sampling import draw, uniform
from service.engine.sequence import EngineRequest
from tests.service.engine.driving import generate, prompt_of, read, submit

LENGTH = 16


def drawn(logits: list[float], temperature: float, top_p: float, rows: int = 4000) -> list[float]:
    """How often each token comes up."""
    batch = torch.tensor([logits]).expand(rows, -1)
    full = lambda value: torch.full((rows,), value)  # noqa: E731
    tokens = draw(batch, full(temperature), full(top_p), torch.arange(rows), torch.full((rows,), 9))
    return (torch.bincount(tokens, minlength=len(logits)) / rows).tolist()


def test_frequencies_are_those_of_the_softmax() -> None:
    logits = [1.0, 0.0, -1.0, 2.0]
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(torch.tensor(logits) / temperature, -1).tolist()
        assert drawn(logits, temperature, 1.0) == pytest.approx(expected, abs=0.03)


def test_the_nucleus_holds_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    shares = drawn(logits, 1.0, 0.75)
    assert shares[2:] == [0.0, 0.0]
    assert shares[:2] == pytest.approx([0.625, 0.375], abs=0.03)


def test_no_temperature_takes_the_most_likely_and_forbidden_tokens_never_come() -> None:
    assert drawn([0.0, 3.0, 1.0], 0.0, 1.0) == [0.0, 1.0, 0.0]
    assert drawn([0.0, float("-inf"), 0.0], 5.0, 1.0)[1] == 0.0


def test_random_numbers_are_spread_evenly_over_seeds_and_positions() -> None:
    for seed, position in (
        (torch.arange(10_000), torch.full((10_000,), 3)),
        (torch.full((10_000,), 3), torch.arange(10_000)),
    ):
        numbers = uniform(seed, position)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        histogram = torch.histc(numbers, 10, 0, 1) / 10_000
        assert histogram.tolist() == pytest.approx([0.1] * 10, abs=0.015)


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(
    opened: OpenEngine, adapters: dict[str, Path]
) -> None:
    requests = [
        EngineRequest(
            prompt=prompt_of(20 + 9 * i, seed=i),
            max_tokens=LENGTH,
            temperature=0.8,
            top_p=0.95,
            seed=100 + i,
            digest=kind,
            adapter=read(opened, adapters[kind]) if kind else None,
        )
        for i, kind in enumerate(["", "plain", "rslora", ""])
    ]
    alone = [generate(opened, request) for request in requests]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        together = {i: submit(opened, requests[i]) for i in order}
        assert [together[i].wait().tokens[0] for i in range(4)] == alone


def test_candidates_of_one_seed_differ_and_other_seeds_give_other_tokens(
    opened: OpenEngine,
) -> None:
    def candidates(seed: int) -> list[list[int]]:
        request = EngineRequest(
            prompt=prompt_of(20), n=3, max_tokens=LENGTH, temperature=1.5, seed=seed
        )
        heard = submit(opened, request).wait()
        return [heard.tokens[i] for i in range(3)]

    first = candidates(1)
    assert candidates(1) == first
    assert len({tuple(tokens) for tokens in first + candidates(2)}) == 6
