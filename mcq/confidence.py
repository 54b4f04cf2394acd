"""How likely a question is right, from what can be found out without a person.

A logistic combination, fitted on questions that were read (docs/quality.md; `python -m
benchmarks.quality_verifiers` and `quality_confidence`). What is weighed depends on who judges: a
verifier adapter, which has learned from such readings, or the bare base as a reader of the passage.
The reader finds wrong keys but likes questions whose other options are nonsense; those are what the
likelihood finds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mcq.question import Letter, Question
from mcq.recall import key_coverage, may_ask_for_recall

FEATURES = ("reader", "plain_stem", "likelihood")
"""What is weighed where a reader judges, in this order; the last one only where it is known."""

WEIGHTS = (0.6985, 0.2117, 0.0, 0.7168)
"""Bias, then one for each of `FEATURES`; the adapter of these questions only writes plain stems."""

WEIGHTS_WITHOUT_LIKELIHOOD = (-1.1159, 0.3244, 0.3521)
"""The same for questions whose likelihood is not known."""

VERIFIER_FEATURES = ("verifier", "stem's likelihood")
"""What is weighed where a verifier judges; the last one only where it is known."""

VERIFIER_WEIGHTS = (1.3929, 0.46, 1.8573)
"""Bias, then one for each of `VERIFIER_FEATURES`."""

VERIFIER_WEIGHTS_WITHOUT_LIKELIHOOD = (0.4133, 0.4945)
"""The same for questions whose likelihood is not known."""

VERIFIED = 0.5
"""The confidence from which a question is given out as verified."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a reader and the model that wrote it make of one question."""

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


@dataclass(frozen=True, slots=True)
class VerifierSignals:
    """What a verifier and the model that wrote it make of one question."""

    sound: float
    """The verifier's probability that the question is in order."""
    stem_logprob: float | None = None
    """Natural log-probability of the stem in the model that wrote it."""


def signals_of(
    question: Question,
    context: str,
    answers: Mapping[Letter, float],
    logprob: float | None = None,
) -> Signals:
    """Everything that a reader's confidence rests on; `question` carries its evidence."""
    said = context if question.evidence is None else question.evidence.text
    return Signals(
        key=answers[question.key],
        rival=max(p for letter, p in answers.items() if letter != question.key),
        coverage=key_coverage(question, said),
        plain_stem=may_ask_for_recall(question.question),
        logprob=logprob,
    )


def confidence(signals: Signals | VerifierSignals) -> float:
    """The probability that a person would find the question right."""
    bias, *weights = _weights(signals)
    value = bias + sum(w * f for w, f in zip(weights, features(signals), strict=True))
    return 1 / (1 + math.exp(-value))


def _weights(signals: Signals | VerifierSignals) -> tuple[float, ...]:
    match signals:
        case Signals(logprob=None):
            return WEIGHTS_WITHOUT_LIKELIHOOD
        case Signals():
            return WEIGHTS
        case VerifierSignals(stem_logprob=None):
            return VERIFIER_WEIGHTS_WITHOUT_LIKELIHOOD
        case VerifierSignals():
            return VERIFIER_WEIGHTS


def features(signals: Signals | VerifierSignals) -> tuple[float, ...]:
    """The numbers that are weighed; see `FEATURES` and `VERIFIER_FEATURES`."""
    if isinstance(signals, VerifierSignals):
        known = (logit(signals.sound),)
        return known if signals.stem_logprob is None else (*known, signals.stem_logprob / 10)
    known = (logit(signals.key), float(signals.plain_stem))
    return known if signals.logprob is None else (*known, signals.logprob / 10)


def logit(p: float) -> float:
    """Log odds, kept within what a small model can mean."""
    p = min(0.99, max(0.01, p))
    return math.log(p / (1 - p))
