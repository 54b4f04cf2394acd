"""How the reader's answers in several rotations become one opinion."""

import math

import pytest

from mcq.question import LETTERS, Letter, Question
from mcq.reader import option_probabilities, reader_prompts

OPTIONS: dict[Letter, str] = {"A": "một", "B": "hai", "C": "ba", "D": "bốn"}
QUESTION = Question(question="Mấy?", options=OPTIONS, key="B")


def scores_of_a_reader_that_prefers(text: str, rotations: int) -> list[list[float]]:
    rows: list[list[float]] = []
    for asked in reader_prompts(QUESTION, "Có hai con.", "vi", rotations):
        lines = asked.prompt.messages[-1].content.splitlines()
        shown = [
            line.partition(". ")[2] for line in lines if line[:3] in ("A. ", "B. ", "C. ", "D. ")
        ]
        rows.append([math.log(0.7 if option == text else 0.1) for option in shown])
    return rows


@pytest.mark.parametrize("rotations", [1, 2, 4])
def test_an_opinion_follows_the_text_through_the_rotations(rotations: int):
    likely = option_probabilities(scores_of_a_reader_that_prefers("hai", rotations))
    assert likely == pytest.approx({"A": 0.1, "B": 0.7, "C": 0.1, "D": 0.1})


def test_a_liking_for_a_letter_cancels_out_over_all_rotations():
    always_c = [[math.log(p) for p in (0.1, 0.1, 0.7, 0.1)]] * 4
    assert option_probabilities(always_c) == pytest.approx(dict.fromkeys(LETTERS, 0.25))
