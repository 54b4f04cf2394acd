"""Keys are spread over the letters without changing what is asked."""

import random
from collections import Counter

import pytest

from mcq.question import LETTERS, Letter, Question
from mcq.shuffling import balanced, is_order_free, with_key_at


@pytest.mark.parametrize("letter", LETTERS)
def test_the_key_moves_and_nothing_else_changes(letter: Letter, question_vi: Question) -> None:
    moved = with_key_at(question_vi, letter, random.Random(1))
    assert (moved.key, moved.key_text) == (letter, question_vi.key_text)
    assert sorted(moved.options.values()) == sorted(question_vi.options.values())


def test_keys_of_a_set_are_balanced(question_vi: Question) -> None:
    rng = random.Random(2)
    used: list[Letter] = []
    for _ in range(20):
        used.append(balanced(question_vi, used, rng).key)
    assert set(Counter(used).values()) == {5}


@pytest.mark.parametrize(
    "options",
    [("10", "20", "30", "40"), ("một", "hai", "Cả A và B", "ba")],
)
def test_options_whose_order_means_something_stay(options: tuple[str, ...]) -> None:
    question = Question(question="Nào?", options=dict(zip(LETTERS, options, strict=True)), key="A")
    assert not is_order_free(question)
    assert balanced(question, ["A"], random.Random(0)) is question
