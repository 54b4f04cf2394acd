"""Does the passage prove the key? The base model itself answers each candidate, and decides.

The bare base reads a question well that its fine-tuned self has written badly: it is asked with the
passage, in two or all four rotations of the options, in the same batches as everything else.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from mcq.confidence import VERIFIED, Signals, confidence, signals_of
from mcq.language import Language
from mcq.question import LETTERS, Check, Letter, Question
from mcq.reader import CHOICES, option_probabilities, reader_prompts
from service.backends.base import Backend, ScoreRequest

_READ_AT_ONCE = 4
"""Enough to share the reading of the passage; on a CPU each further one costs a second."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is thought of one question."""

    signals: Signals

    @property
    def confidence(self) -> float:
        """The calibrated probability that a person would find it right."""
        return confidence(self.signals)

    @property
    def checks(self) -> tuple[Check, Check]:
        """The same for whoever gets the question."""
        key, rival = self.signals.key, self.signals.rival
        return (
            Check(name="reader_agrees", passed=key > rival, detail=f"{key:.2f}"),
            Check(
                name="verified",
                passed=self.confidence >= VERIFIED,
                detail=f"{self.confidence:.2f}",
            ),
        )


class Verifier:
    """Judges candidates with the bare base model of a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def best_first(
        self,
        candidates: Sequence[tuple[Question, float | None]],
        context: str,
        language: Language,
        rotations: int,
    ) -> AsyncGenerator[tuple[Question, Verdict]]:
        """Questions by falling confidence, each read only when its turn could have come.

        The likelihood is known before anything is read, so that there is a most that the reader can
        make of each candidate: one that stays behind a candidate that was read need not be read
        before it (branch and bound; the order is that of reading all of them).

        Args:
            candidates: Questions, and how likely their model held each to be, if it says.
            rotations: Orders of the options in which each is read: 1, 2 or 4.
        """
        waiting = sorted(
            (
                (at_most(question, context, logprob), i)
                for i, (question, logprob) in enumerate(candidates)
            ),
            key=lambda pair: (-pair[0], pair[1]),
        )
        judged: list[tuple[Question, Verdict]] = []
        while waiting or judged:
            while waiting and (not judged or _rank(judged[0])[0] < waiting[0][0]):
                group = [candidates[i] for _, i in waiting[:_READ_AT_ONCE]]
                del waiting[:_READ_AT_ONCE]
                judged += await self._read(group, context, language, rotations)
                judged.sort(key=_rank, reverse=True)
            yield judged.pop(0)

    async def _read(
        self,
        candidates: Sequence[tuple[Question, float | None]],
        context: str,
        language: Language,
        rotations: int,
    ) -> list[tuple[Question, Verdict]]:
        """All of them in one call of the backend."""
        requests = [
            ScoreRequest(asked.prompt, CHOICES, prefix=asked.prefix)
            for question, _ in candidates
            for asked in reader_prompts(question, context, language, rotations)
        ]
        scores = await self._backend.score(requests)
        return [
            (question, Verdict(signals_of(question, context, option_probabilities(rows), logprob)))
            for (question, logprob), rows in zip(
                candidates, _in_groups(scores, rotations), strict=True
            )
        ]


def at_most(question: Question, context: str, logprob: float | None) -> float:
    """The confidence in a question if the reader will be as sure of its key as it can be."""
    sure: dict[Letter, float] = {letter: float(letter == question.key) for letter in LETTERS}
    return confidence(signals_of(question, context, sure, logprob))


def _rank(judged: tuple[Question, Verdict]) -> tuple[float, int]:
    question, verdict = judged
    return verdict.confidence, sum(check.passed for check in question.checks)


def _in_groups(scores: list[list[float]], size: int) -> list[list[list[float]]]:
    """The rotations of each question together."""
    return [scores[start : start + size] for start in range(0, len(scores), size)]
