"""Who judges candidates: a verifier adapter, or the bare base reading the passage.

Both run in the same batches as everything else, and both know, before they are asked, the most that
they could make of a candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mcq.confidence import Signals, VerifierSignals, confidence, signals_of
from mcq.language import Language
from mcq.question import LETTERS, Check, Letter
from mcq.reader import CHOICES, option_probabilities, reader_prompts
from mcq.verdict import CHOICES as VERDICTS
from mcq.verdict import probability_of_yes, verdict_prompt
from service.backends.base import AdapterFiles, Backend, ScoreRequest
from service.candidates import Candidate


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is thought of one question."""

    confidence: float
    """The calibrated probability that a person would find it right."""
    agreement: Check
    """Whether the judge agrees, in its own words."""


class Judge(Protocol):
    """Says how likely candidates are right."""

    def at_most(self, candidate: Candidate, context: str) -> float:
        """The confidence in a candidate if the judge will be as sure of it as it can be."""
        ...

    async def judge(
        self, candidates: Sequence[Candidate], context: str, language: Language
    ) -> list[Verdict]:
        """A verdict on each; all in one call of the backend."""
        ...


class Reader:
    """The bare base answers each question with the passage.

    It reads a question well that its fine-tuned self has written badly.
    """

    def __init__(self, backend: Backend, rotations: int) -> None:
        """`rotations`: orders of the options in which each question is read: 1, 2 or 4."""
        self._backend, self._rotations = backend, rotations

    def at_most(self, candidate: Candidate, context: str) -> float:
        """As if every order were answered by the key."""
        question = candidate.question
        sure: dict[Letter, float] = {letter: float(letter == question.key) for letter in LETTERS}
        return confidence(signals_of(question, context, sure, candidate.logprob))

    async def judge(
        self, candidates: Sequence[Candidate], context: str, language: Language
    ) -> list[Verdict]:
        """Every question in every order."""
        requests = [
            ScoreRequest(asked.prompt, CHOICES, prefix=asked.prefix)
            for candidate in candidates
            for asked in reader_prompts(candidate.question, context, language, self._rotations)
        ]
        scores = await self._backend.score(requests)
        rows = [scores[at : at + self._rotations] for at in range(0, len(scores), self._rotations)]
        return [
            _read(signals_of(c.question, context, option_probabilities(mine), c.logprob))
            for c, mine in zip(candidates, rows, strict=True)
        ]


def _read(signals: Signals) -> Verdict:
    agrees = signals.key > signals.rival
    check = Check(name="reader_agrees", passed=agrees, detail=f"{signals.key:.2f}")
    return Verdict(confidence(signals), check)


class VerifierAdapter:
    """An adapter that was trained to tell sound questions from others (`training.verdicts`)."""

    def __init__(self, backend: Backend, files: AdapterFiles) -> None:
        self._backend, self._files = backend, files

    def at_most(self, candidate: Candidate, context: str) -> float:
        """As if it were sure."""
        return confidence(VerifierSignals(1.0, candidate.stem_logprob))

    async def judge(
        self, candidates: Sequence[Candidate], context: str, language: Language
    ) -> list[Verdict]:
        """One prompt for each."""
        asked = [verdict_prompt(c.question, context, language) for c in candidates]
        requests = [
            ScoreRequest(a.prompt, VERDICTS[language], prefix=a.prefix, adapter=self._files)
            for a in asked
        ]
        scores = await self._backend.score(requests)
        return [
            _verified(VerifierSignals(probability_of_yes(row), candidate.stem_logprob))
            for candidate, row in zip(candidates, scores, strict=True)
        ]


def _verified(signals: VerifierSignals) -> Verdict:
    sound = signals.sound
    check = Check(name="verifier_agrees", passed=sound > 0.5, detail=f"{sound:.2f}")
    return Verdict(confidence(signals), check)
