"""How likely a question is right, from what can be found out without a person.

A logistic combination of the reader's answers, the question's form, and how likely the model held
its own text to be, fitted on questions that were read (`python -m benchmarks.quality_verifiers`,
docs/quality.md). The reader finds wrong keys but likes questions whose other options are nonsense;
those are what the likelihood finds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mcq.question import Letter, Question
from mcq.recall import key_coverage, may_ask_for_recall

FEATURES = ("reader", "plain_stem", "likelihood")
"""What is weighed, in this order; the last one only where it is known."""

WEIGHTS = (0.6985, 0.2117, 0.0, 0.7168)
"""Bias, then one for each of `FEATURES`; the adapter of these questions only writes plain stems."""

WEIGHTS_WITHOUT_LIKELIHOOD = (-1.1159, 0.3244, 0.3521)
"""The same for questions whose likelihood is not known."""

VERIFIED = 0.5
"""The confidence from which a question is given out as verified. Of the ruler's questions above it
88 of 132 were right, each judged by weights that were fitted without it; of the questions that the
service had chosen for passages set aside, 43 of 52."""


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
    logprob: float | None = None
    """Natural log-probability of the whole completion in the model that wrote it."""


def signals_of(
    question: Question,
    context: str,
    answers: Mapping[Letter, float],
    logprob: float | None = None,
) -> Signals:
    """Everything that the confidence rests on; `question` carries its evidence."""
    said = context if question.evidence is None else question.evidence.text
    return Signals(
        key=answers[question.key],
        rival=max(p for letter, p in answers.items() if letter != question.key),
        coverage=key_coverage(question, said),
        plain_stem=may_ask_for_recall(question.question),
        logprob=logprob,
    )


def confidence(signals: Signals) -> float:
    """The probability that a person would find the question right."""
    bias, *weights = WEIGHTS_WITHOUT_LIKELIHOOD if signals.logprob is None else WEIGHTS
    value = bias + sum(w * f for w, f in zip(weights, features(signals), strict=True))
    return 1 / (1 + math.exp(-value))


def features(signals: Signals) -> tuple[float, ...]:
    """The numbers that are weighed; see `FEATURES`."""
    known = (logit(signals.key), float(signals.plain_stem))
    return known if signals.logprob is None else (*known, signals.logprob / 10)


def logit(p: float) -> float:
    """Log odds, kept within what four rotations of a small model can mean."""
    p = min(0.99, max(0.01, p))
    return math.log(p / (1 - p))
