"""How a model is asked to answer a question, to see whether its passage proves its key.

The options are shown in all four rotations, so that a model's liking for a letter cancels out. A
good question is answered with the passage and not without it. Pure: builds prompts and averages
what some backend scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mcq.language import Language
from mcq.parsing import KEY_LABEL, STEM_LABEL
from mcq.prompts import Message, Prompt, normalize_context
from mcq.question import LETTERS, Letter, Question

ROTATIONS = len(LETTERS)
CHOICES: tuple[str, ...] = tuple(f" {letter}" for letter in LETTERS)
"""What the prompt is continued with; scored by the log-probability of the first token."""

_TASK: dict[Language, dict[bool, str]] = {
    "vi": {
        True: "Đọc đoạn văn rồi trả lời câu hỏi trắc nghiệm. Chỉ một phương án đúng.",
        False: "Trả lời câu hỏi trắc nghiệm. Chỉ một phương án đúng.",
    },
    "en": {
        True: "Read the passage and answer the multiple-choice question. Only one option is right.",
        False: "Answer the multiple-choice question. Only one option is right.",
    },
}


@dataclass(frozen=True, slots=True)
class ReaderPrompt:
    """One rotation: what to ask, and what the model is taken to have said already."""

    prompt: Prompt
    prefix: str


def reader_prompts(
    question: Question, context: str | None, language: Language, rotations: int = ROTATIONS
) -> tuple[ReaderPrompt, ...]:
    """The question in each rotation of its options, with the passage or without (None).

    Fewer `rotations` (1, 2 or 4) cost less and leave more of the model's liking for a letter.
    """
    return tuple(
        ReaderPrompt(_prompt(question, context, language, shift), KEY_LABEL[language])
        for shift in range(0, ROTATIONS, ROTATIONS // rotations)
    )


def _prompt(question: Question, context: str | None, language: Language, shift: int) -> Prompt:
    lines = [f"{STEM_LABEL[language]} {question.question}"]
    for place, letter in enumerate(LETTERS):
        lines.append(f"{letter}. {question.options[_shown(place, shift)]}")
    passage = "" if context is None else f"{normalize_context(context)}\n\n"
    return Prompt(
        messages=(
            Message("system", _TASK[language][context is not None]),
            Message("user", passage + "\n".join(lines)),
        )
    )


def _shown(place: int, shift: int) -> Letter:
    """Which option stands at that place in that rotation."""
    return LETTERS[(place + shift) % ROTATIONS]


def option_probabilities(scores: Sequence[Sequence[float]]) -> dict[Letter, float]:
    """Mean probability of each option over the rotations.

    Args:
        scores: For each rotation in order, the log-probabilities of `CHOICES` in order; they need
            not be normalised. As many rows as prompts.
    """
    totals: dict[Letter, float] = dict.fromkeys(LETTERS, 0.0)
    shifts = range(0, ROTATIONS, ROTATIONS // len(scores))
    for shift, row in zip(shifts, scores, strict=True):
        top = max(row)
        weights = [math.exp(score - top) for score in row]
        for place, weight in enumerate(weights):
            totals[_shown(place, shift)] += weight / sum(weights) / len(scores)
    return totals
