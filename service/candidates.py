"""Completions drawn from the backend and read: the raw material of questions."""

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from mcq.errors import MalformedCompletionError
from mcq.grammar import passage_characters
from mcq.parsing import STEM_LABEL
from mcq.question import (
    MAX_OPTION_CHARACTERS,
    MAX_STEM_CHARACTERS,
    Letter,
    Question,
    comparable,
)
from mcq.recall import may_ask_for_recall
from service.backends.base import (
    AdapterFiles,
    Backend,
    CompletionDelta,
    CompletionRequest,
    FinishReason,
    Sampling,
)
from service.metrics import Metrics
from service.planning import Plan
from service.streams import merged

_SAMPLED_TEMPERATURE = 0.4
"""Of questions that were read, half of the greedy ones were right and a third of those drawn at
0.7 (docs/quality.md): little enough to keep the quality, enough to ask for other things."""
_TOP_P = 0.95


@dataclass
class Tally:
    """What a request has cost and yielded so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    candidates: int = 0
    accepted: list[Question] = field(default_factory=list[Question])
    dropped: Counter[str] = field(default_factory=Counter[str])

    @property
    def keys(self) -> list[Letter]:
        """The keys of the accepted questions, in order."""
        return [question.key for question in self.accepted]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question as the model wrote it."""

    question: Question
    logprob: float | None
    """How likely the model held its whole text to be; None where the backend does not say."""
    stem_logprob: float | None = None
    """The same of its stem alone."""


@dataclass(slots=True)
class _Completion:
    """A completion as far as it has come."""

    text: str = ""
    logprobs: dict[int, float] = field(default_factory=dict[int, float])
    """By line of the text; empty where the backend says nothing."""

    def add(self, delta: CompletionDelta) -> None:
        """Go on; what a delta brings counts for the line where it begins."""
        if delta.logprob is not None:
            line = self.text.count("\n")
            self.logprobs[line] = self.logprobs.get(line, 0.0) + delta.logprob
        self.text += delta.text

    @property
    def logprob(self) -> float | None:
        """Of the whole text."""
        return sum(self.logprobs.values()) if self.logprobs else None

    def logprob_of(self, label: str) -> float | None:
        """Of the line that begins with a label."""
        for number, line in enumerate(self.text.split("\n")):
            if line.startswith(label):
                return self.logprobs.get(number)
        return None


class CandidateSource:
    """Draws candidates in rounds for one request; each yields well-formed questions only."""

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        files: AdapterFiles | None,
        tally: Tally,
        metrics: Metrics,
    ) -> None:
        self._backend = backend
        self._plan = plan
        self._files = files
        self._tally = tally
        self._metrics = metrics
        self._round = 0

    async def draw(self, count: int) -> AsyncGenerator[Candidate]:
        """Draw `count` completions; yield the questions among them, in the order they end."""
        streams = [self._completions(request) for request in self._requests(count)]
        self._round += 1
        label = STEM_LABEL[self._plan.start.language]
        async for completion, reason in merged(streams):
            question = self._read(completion.text, reason)
            if question is not None:
                yield Candidate(question, completion.logprob, completion.logprob_of(label))

    def drop(self, reason: str) -> None:
        """Count a candidate that will not be returned."""
        self._tally.dropped[reason] += 1
        self._metrics.rejected.labels(reason).inc()

    def _requests(self, count: int) -> list[CompletionRequest]:
        """The prompts of one round.

        The first candidate of all is greedy, since temperature costs truth; the others are drawn.
        The prompt names what was accepted already, so that later rounds ask for something else.
        """
        plan, language = self._plan, self._plan.start.language
        stems = [question.question for question in self._tally.accepted]
        request = CompletionRequest(
            prompt=plan.prompt_format.render(plan.context, language, [*plan.request.avoid, *stems]),
            sampling=self._sampling(),
            adapter=self._files,
            grammar=plan.prompt_format.grammar(language),
            extra_characters=passage_characters(plan.context),
            n=count,
            deadline=plan.deadline,
            is_wanted=self._may_go_on if plan.is_verified else None,
        )
        if self._round > 0 or plan.request.temperature is not None:
            return [request]
        greedy = replace(request, sampling=replace(request.sampling, temperature=0.0), n=1)
        return [greedy, replace(request, n=count - 1)] if count > 1 else [greedy]

    def _sampling(self) -> Sampling:
        asked = self._plan.request
        temperature = asked.temperature
        if temperature is None or (temperature == 0 and self._round > 0):
            temperature = _SAMPLED_TEMPERATURE  # greedy again would only repeat itself
        return Sampling(
            temperature=temperature,
            top_p=_TOP_P if asked.top_p is None else asked.top_p,
            seed=self._plan.seed + self._round * 1_000_003,
        )

    async def _completions(
        self, request: CompletionRequest
    ) -> AsyncGenerator[tuple[_Completion, FinishReason]]:
        """Each candidate's whole text, in the order in which they end."""
        begun: dict[int, _Completion] = {}
        self._tally.candidates += request.n
        deltas = self._backend.complete(request)
        try:
            async for delta in deltas:
                self._tally.prompt_tokens += delta.prompt_tokens
                self._tally.completion_tokens += delta.tokens
                begun.setdefault(delta.index, _Completion()).add(delta)
                if delta.finish_reason is not None:
                    yield begun.pop(delta.index), delta.finish_reason
        finally:
            await deltas.aclose()

    def _may_go_on(self, text: str) -> bool:
        """Whether a candidate that begins so may still be verified.

        Of the stems that tell a situation or ask for a reason, one in six made a right question
        when people read them; most end after a few words, so many more can be drawn. Asked at
        every token: a whole stem is left to `_read`.
        """
        stem, is_whole = self._stem(text)
        return is_whole or may_ask_for_recall(stem)

    def _stem(self, text: str) -> tuple[str, bool]:
        """The stem as far as it is written, and whether it has ended."""
        _, _, rest = text.partition(STEM_LABEL[self._plan.start.language])
        stem, end, _ = rest.partition("\n")
        return stem, bool(end)

    def _read(self, text: str, reason: FinishReason) -> Question | None:
        """The question in a completion, or None with the reason counted."""
        if self._plan.is_verified and not may_ask_for_recall(self._stem(text)[0]):
            return self.drop("not_recall")
        if reason != "stop":
            return self.drop("too_long" if reason == "length" else "timeout")
        try:
            question = self._plan.prompt_format.parse(text, self._plan.start.language)
        except MalformedCompletionError as error:
            return self.drop(error.reason)
        if _is_cut_off(question):
            return self.drop("cut_off")
        if self.is_known(question):
            return self.drop("duplicate")
        return question

    def is_known(self, question: Question) -> bool:
        """Whether its stem was accepted already, or is to be avoided."""
        stems = {comparable(stem) for stem in self._plan.request.avoid}
        stems |= {comparable(other.question) for other in self._tally.accepted}
        return comparable(question.question) in stems


_LAST_CHARACTERS = 12
"""A field is closed where no further token would fit, so up to a long token before its limit."""


def _is_cut_off(question: Question) -> bool:
    """Whether a field ends because the grammar closed it, in the middle of a sentence.

    A model that is not fine-tuned copies the passage into the stem until it is stopped.
    """
    if len(question.question) > MAX_STEM_CHARACTERS - _LAST_CHARACTERS:
        return True
    longest = max(len(text) for text in question.options.values())
    return longest > MAX_OPTION_CHARACTERS - _LAST_CHARACTERS
