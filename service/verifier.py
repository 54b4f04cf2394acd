"""Does the passage prove the key? The base model itself answers each candidate, and decides.

The bare base reads a question well that its fine-tuned self has written badly: it is asked with the
passage, in two or all four rotations of the options, in the same batches as everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mcq.confidence import VERIFIED, Signals, confidence, signals_of
from mcq.language import Language
from mcq.question import Check, Question
from mcq.reader import CHOICES, option_probabilities, reader_prompts
from service.backends.base import Backend, ScoreRequest


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

    async def judge(
        self,
        questions: Sequence[Question],
        logprobs: Sequence[float | None],
        context: str,
        language: Language,
        rotations: int,
    ) -> list[Verdict]:
        """One verdict for each question, in order; all of them in one call of the backend.

        Args:
            logprobs: How likely the model that wrote each question held it to be, if it says.
            rotations: Orders of the options in which each is read: 1, 2 or 4.
        """
        requests = [
            ScoreRequest(asked.prompt, CHOICES, prefix=asked.prefix)
            for question in questions
            for asked in reader_prompts(question, context, language, rotations)
        ]
        scores = await self._backend.score(requests)
        return [
            Verdict(signals_of(question, context, option_probabilities(rows), logprob))
            for question, logprob, rows in zip(
                questions, logprobs, _in_groups(scores, rotations), strict=True
            )
        ]


def _in_groups(scores: list[list[float]], size: int) -> list[list[list[float]]]:
    """The rotations of each question together."""
    return [scores[start : start + size] for start in range(0, len(scores), size)]
