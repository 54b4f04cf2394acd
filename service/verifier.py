"""Does the passage prove the key? The base model itself answers each candidate, and decides.

The bare base reads a question well that its fine-tuned self has written badly: it is asked with the
passage, in all rotations of the options, in the same batches as everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mcq.language import Language
from mcq.question import Letter, Question
from mcq.reader import CHOICES, ROTATIONS, option_probabilities, reader_prompts
from service.backends.base import Backend, ScoreRequest

VERIFIED = 0.65
"""The key's mean probability from which a question counts as verified."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reader thinks of one question."""

    with_passage: dict[Letter, float]
    key: Letter

    @property
    def confidence(self) -> float:
        """Mean probability of the key over the rotations."""
        return self.with_passage[self.key]

    @property
    def rival(self) -> float:
        """Mean probability of the likeliest distractor."""
        return max(p for letter, p in self.with_passage.items() if letter != self.key)


class Verifier:
    """Judges candidates with the bare base model of a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def judge(
        self, questions: Sequence[Question], context: str, language: Language
    ) -> list[Verdict]:
        """One verdict for each question, in order; all of them in one call of the backend."""
        requests = [
            ScoreRequest(asked.prompt, CHOICES, prefix=asked.prefix)
            for question in questions
            for asked in reader_prompts(question, context, language)
        ]
        scores = await self._backend.score(requests)
        return [
            Verdict(option_probabilities(scores[i * ROTATIONS : (i + 1) * ROTATIONS]), q.key)
            for i, q in enumerate(questions)
        ]
