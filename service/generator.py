"""Prompt, complete, parse, check, draw again: the sentence that the product is.

A completion that is no question is dropped and drawn again; nothing is repaired in silence, and
what is missing in the end is counted.
"""

import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from mcq.checks import run_checks
from mcq.context import check_context
from mcq.errors import MalformedCompletionError
from mcq.evidence import find_evidence
from mcq.grammar import passage_characters
from mcq.language import Language, detect_language
from mcq.prompts import PromptFormat, prompt_format
from mcq.question import Question, comparable
from model_registry.adapter import AdapterVersion
from service.adapters import AdapterCache
from service.backends.base import (
    AdapterFiles,
    Backend,
    CompletionRequest,
    FinishReason,
    Sampling,
)
from service.config import ServiceConfig
from service.errors import TooManyQuestionsError, UnknownVariantError
from service.metrics import Metrics
from service.registry_follower import RegistryFollower
from service.schema import AdapterUsed, GenerateDone, GenerateRequest, GenerateStart, Usage
from service.streams import merged

BARE_BASE = "base"
"""What a request names to get no adapter."""

_SAMPLED_TEMPERATURE = 0.7
_TOP_P = 0.95


@dataclass(frozen=True)
class Plan:
    """A request that was found in order: what is asked of whom."""

    start: GenerateStart
    request: GenerateRequest
    context: str
    version: AdapterVersion | None
    prompt_format: PromptFormat
    began: float = field(default_factory=time.monotonic)


@dataclass
class Tally:
    """What a request has cost and yielded so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    candidates: int = 0
    accepted: list[Question] = field(default_factory=list[Question])
    dropped: Counter[str] = field(default_factory=Counter[str])


class QuestionGenerator:
    """Turns planned requests into questions, as they get ready."""

    def __init__(
        self,
        backend: Backend,
        adapters: AdapterCache,
        follower: RegistryFollower,
        config: ServiceConfig,
        metrics: Metrics,
    ) -> None:
        self._backend = backend
        self._adapters = adapters
        self._follower = follower
        self._config = config
        self._metrics = metrics

    def plan(self, request: GenerateRequest) -> Plan:
        """Check a request without starting anything; every refusal that can come early does.

        Raises:
            InvalidContextError, ContextTooLongError, TooManyQuestionsError, UnknownVariantError,
            and what resolving and checking the adapter raises.
        """
        if request.n > self._config.max_questions:
            raise TooManyQuestionsError(request.n, self._config.max_questions)
        context = check_context(
            request.context,
            min_words=self._config.min_context_words,
            max_words=self._config.max_context_words,
        )
        version = self._version(request.adapter)
        if request.variant != "adapter":
            name = request.adapter or self._config.default_adapter or BARE_BASE
            raise UnknownVariantError(name, request.variant, ("adapter",))
        language = detect_language(context) if request.language == "auto" else request.language
        start = GenerateStart(
            id=f"gen_{secrets.token_hex(8)}",
            base_model=self._backend.info.base_model,
            adapter=version
            and AdapterUsed(name=version.name, version=version.number, digest=version.digest),
            variant=request.variant,
            language=language,
        )
        name = version.manifest.prompt_format if version else self._base_format
        return Plan(start, request, context, version, prompt_format(name))

    async def run(self, plan: Plan) -> AsyncGenerator[Question | GenerateDone]:
        """Yield each question as soon as it is complete, then how it went."""
        tally = Tally()
        deadline = plan.began + self._config.request_timeout_s
        async with AsyncExitStack() as stack:
            files = None
            if plan.version is not None:
                files = await stack.enter_async_context(self._adapters.acquire(plan.version))
            budget = plan.request.n * self._config.candidates_per_question
            rounds = 0
            while len(tally.accepted) < plan.request.n and tally.candidates < budget:
                if time.monotonic() >= deadline:
                    tally.dropped["timeout"] += 1
                    break
                wanted = min(plan.request.n - len(tally.accepted), budget - tally.candidates)
                requests = self._requests(plan, files, wanted, rounds, tally, deadline)
                async for question in self._candidates(plan, requests, tally):
                    yield question
                rounds += 1
        yield self._done(plan, tally)

    def _version(self, name: str | None) -> AdapterVersion | None:
        name = name if name is not None else self._config.default_adapter
        if name is None or name == BARE_BASE:
            return None
        version = self._follower.resolve(name)
        self._adapters.check(version)
        return version

    @property
    def _base_format(self) -> str:
        return "chat/1" if self._backend.info.supports_chat else "instruct-vi/1"

    def _requests(
        self,
        plan: Plan,
        files: AdapterFiles | None,
        wanted: int,
        round_: int,
        tally: Tally,
        deadline: float,
    ) -> list[CompletionRequest]:
        """The prompts of one round.

        The first candidate of all is greedy, since temperature costs truth; the others are drawn.
        From the second round on, the prompt names what was asked already.
        """
        language = plan.start.language
        avoid = [*plan.request.avoid, *(question.question for question in tally.accepted)]
        request = CompletionRequest(
            prompt=plan.prompt_format.render(plan.context, language, avoid),
            sampling=self._sampling(plan.request, round_),
            adapter=files,
            grammar=plan.prompt_format.grammar(language),
            extra_characters=passage_characters(plan.context),
            n=wanted,
            deadline=deadline,
        )
        if round_ > 0 or plan.request.temperature is not None:
            return [request]
        greedy = replace(request, sampling=replace(request.sampling, temperature=0.0), n=1)
        return [greedy, replace(request, n=wanted - 1)] if wanted > 1 else [greedy]

    def _sampling(self, request: GenerateRequest, round_: int) -> Sampling:
        seed = secrets.randbits(48) if request.seed is None else request.seed
        temperature = request.temperature
        if temperature is None or (temperature == 0 and round_ > 0):
            temperature = _SAMPLED_TEMPERATURE  # greedy again would only repeat itself
        return Sampling(
            temperature=temperature,
            top_p=_TOP_P if request.top_p is None else request.top_p,
            seed=seed + round_ * 1_000_003,
        )

    async def _candidates(
        self, plan: Plan, requests: Sequence[CompletionRequest], tally: Tally
    ) -> AsyncGenerator[Question]:
        streams = [self._completions(request, tally) for request in requests]
        async for text, reason in merged(streams):
            question = self._judge(plan, text, reason, tally)
            if question is not None and len(tally.accepted) < plan.request.n:
                if not tally.accepted:
                    self._metrics.time_to_first_question.observe(time.monotonic() - plan.began)
                tally.accepted.append(question)
                yield question

    async def _completions(
        self, request: CompletionRequest, tally: Tally
    ) -> AsyncGenerator[tuple[str, FinishReason]]:
        """The whole text of each candidate, in the order in which they end."""
        texts: dict[int, list[str]] = {}
        tally.candidates += request.n
        deltas = self._backend.complete(request)
        try:
            async for delta in deltas:
                tally.prompt_tokens += delta.prompt_tokens
                tally.completion_tokens += delta.tokens
                texts.setdefault(delta.index, []).append(delta.text)
                if delta.finish_reason is not None:
                    yield "".join(texts.pop(delta.index)), delta.finish_reason
        finally:
            await deltas.aclose()

    def _judge(self, plan: Plan, text: str, reason: FinishReason, tally: Tally) -> Question | None:
        """The checked question in a completion, or None with the reason counted."""
        if reason != "stop":
            return self._drop(tally, "too_long" if reason == "length" else "timeout")
        language = plan.start.language
        try:
            question = plan.prompt_format.parse(text, language)
        except MalformedCompletionError as error:
            return self._drop(tally, error.reason)
        stems = {comparable(stem) for stem in plan.request.avoid}
        stems |= {comparable(other.question) for other in tally.accepted}
        if comparable(question.question) in stems:
            return self._drop(tally, "duplicate")
        return checked(question, plan.context, language)

    def _drop(self, tally: Tally, reason: str) -> None:
        tally.dropped[reason] += 1
        self._metrics.rejected.labels(reason).inc()

    def _done(self, plan: Plan, tally: Tally) -> GenerateDone:
        name = plan.version.name if plan.version else BARE_BASE
        self._metrics.questions.labels(name).inc(len(tally.accepted))
        self._metrics.prompt_tokens.inc(tally.prompt_tokens)
        self._metrics.completion_tokens.inc(tally.completion_tokens)
        for question in tally.accepted:
            for check in question.checks:
                if not check.passed:
                    self._metrics.flaws.labels(check.name).inc()
        return GenerateDone(
            **plan.start.model_dump(),
            shortfall=plan.request.n - len(tally.accepted),
            shortfall_reasons=dict(tally.dropped),
            usage=Usage(
                prompt_tokens=tally.prompt_tokens,
                completion_tokens=tally.completion_tokens,
                candidates=tally.candidates,
                seconds=round(time.monotonic() - plan.began, 3),
            ),
        )


def checked(question: Question, context: str, language: Language) -> Question:
    """The question with its evidence and everything that was checked in it."""
    question = question.model_copy(update={"evidence": find_evidence(context, question)})
    return question.model_copy(update={"checks": run_checks(question, context, language)})
