"""How likely a question is right, from what can be found out without a person.

A logistic combination of the reader's answers and the question's form, fitted on questions that
were read (`python -m benchmarks.quality_verifiers`, docs/quality.md). The key's words in the
passage, the margin to the next option and the reader without it added nothing to these two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mcq.question import Letter, Question
from mcq.recall import key_coverage, may_ask_for_recall

FEATURES = ("reader", "plain_stem")
"""What is weighed, in this order."""


WEIGHTS = (-1.6167, 0.5827, 0.363)
"""Bias, then one for each of `FEATURES`."""

VERIFIED = 0.6
"""The confidence from which a question is given out as verified. Of the questions that were read,
17 of the 23 above it were right, each judged by weights that were fitted without it."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known about one question."""

    key: float
    """The reader's probability of the key, with the passage."""
    rival: float
    """The same of the likeliest other option."""
    coverage: float
    """Share of the key's words in the evidence, or in the passage if none was found."""
    plain_stem: bool
    """The stem is one sentence and asks for no reason."""


def signals_of(question: Question, context: str, answers: Mapping[Letter, float]) -> Signals:
    """Everything that the confidence rests on; `question` carries its evidence."""
    said = context if question.evidence is None else question.evidence.text
    return Signals(
        key=answers[question.key],
        rival=max(p for letter, p in answers.items() if letter != question.key),
        coverage=key_coverage(question, said),
        plain_stem=may_ask_for_recall(question.question),
    )


def confidence(signals: Signals) -> float:
    """The probability that a person would find the question right."""
    bias, *weights = WEIGHTS
    value = bias + sum(w * f for w, f in zip(weights, features(signals), strict=True))
    return 1 / (1 + math.exp(-value))


def features(signals: Signals) -> tuple[float, ...]:
    """The numbers that are weighed; see `FEATURES`."""
    return (
        logit(signals.key),
        float(signals.plain_stem),
    )


def logit(p: float) -> float:
    """Log odds, kept within what four rotations of a small model can mean."""
    p = min(0.99, max(0.01, p))
    return math.log(p / (1 - p))
