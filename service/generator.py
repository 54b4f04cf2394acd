"""Draw, parse, check, verify, select: the sentence that the product is.

A completion that is no question is dropped and drawn again; nothing is repaired in silence, and
what is missing in the end is counted with its reasons.
"""

import random
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace

from mcq.checks import run_checks
from mcq.confidence import VERIFIED
from mcq.evidence import find_evidence
from mcq.flaws import is_blocked
from mcq.language import Language
from mcq.question import Question, comparable
from mcq.shuffling import balanced
from service.adapters import AdapterCache
from service.backends.base import Backend
from service.candidates import Candidate, CandidateSource, Tally
from service.errors import BackendOverloadedError
from service.judges import Judge, Reader, VerifierAdapter
from service.merged import MergedModels
from service.metrics import Metrics
from service.planning import BARE_BASE, Plan, Planner
from service.schema import GenerateDone, GenerateRequest, Usage
from service.verifier import best_first, with_verdict


class QuestionGenerator:
    """Turns planned requests into questions, as they get ready."""

    def __init__(
        self,
        backend: Backend,
        adapters: AdapterCache,
        merged: MergedModels,
        planner: Planner,
        metrics: Metrics,
    ) -> None:
        self._backend = backend
        self._adapters = adapters
        self._merged = merged
        self._planner = planner
        self._metrics = metrics

    def plan(self, request: GenerateRequest) -> Plan:
        """Check a request without starting anything; see `Planner.plan` for what it raises."""
        return self._planner.plan(request)

    async def run(self, plan: Plan) -> AsyncGenerator[Question | GenerateDone]:
        """Yield each question as soon as it is complete, then how it went."""
        tally = Tally()
        # by passage too: whoever asks for many with one seed gets keys at every letter
        rng = random.Random(f"{plan.seed} {plan.context}")
        async with AsyncExitStack() as stack:
            backend, files = self._backend, None
            if plan.variant is not None:
                backend = await stack.enter_async_context(self._merged.acquire(plan.variant))
            elif plan.version is not None:
                files = await stack.enter_async_context(self._adapters.acquire(plan.version))
            source = CandidateSource(backend, plan, files, tally, self._metrics)
            judge = await self._judge(plan, stack) if plan.is_verified else None
            while len(tally.accepted) < plan.request.n and tally.candidates < plan.max_candidates:
                if time.monotonic() >= plan.deadline:
                    source.drop("timeout")
                    break
                drawn = (
                    self._unverified(plan, source, tally, rng)
                    if judge is None
                    else self._verified(plan, judge, source, tally, rng)
                )
                async for question in drawn:
                    if not tally.accepted:
                        self._metrics.time_to_first_question.observe(time.monotonic() - plan.began)
                    tally.accepted.append(question)
                    yield question
        yield self._done(plan, tally)

    async def _judge(self, plan: Plan, stack: AsyncExitStack) -> Judge:
        """The verifier adapter if there is one, and room for it; else the bare base."""
        if plan.verifier is not None:
            with suppress(BackendOverloadedError):  # its place is another's, who writes questions
                files = await stack.enter_async_context(self._adapters.acquire(plan.verifier))
                return VerifierAdapter(self._backend, files)
        return Reader(self._backend, plan.rotations)

    async def _unverified(
        self, plan: Plan, source: CandidateSource, tally: Tally, rng: random.Random
    ) -> AsyncGenerator[Question]:
        """As many candidates as questions are missing; each goes out as soon as it is read."""
        missing = plan.request.n - len(tally.accepted)
        drawn = source.draw(min(missing, plan.max_candidates - tally.candidates))
        async for candidate in drawn:
            question = candidate.question
            if source.is_known(question):
                source.drop("duplicate")
            else:  # placed first, since some checks name letters
                question = balanced(question, tally.keys, rng)
                yield checked(question, plan.context, plan.start.language)

    async def _verified(
        self, plan: Plan, judge: Judge, source: CandidateSource, tally: Tally, rng: random.Random
    ) -> AsyncGenerator[Question]:
        """One pool of candidates: the best of those that hold go out, best first.

        A pool serves several questions as long as they rest on different evidence; for what is
        missing then, the next pool is drawn with these in its prompt.
        """
        pool: list[Candidate] = []
        texts: set[str] = set()
        language = plan.start.language
        left = plan.max_candidates - tally.candidates
        async for drawn in source.draw(min(plan.candidates_per_question, left)):
            candidate = replace(drawn, question=checked(drawn.question, plan.context, language))
            question = candidate.question
            if is_blocked(check.name for check in question.checks if not check.passed):
                source.drop("flawed")
            elif (text := _said(question)) in texts:
                source.drop("duplicate")
            elif judge.at_most(candidate, plan.context) < VERIFIED:
                source.drop("not_verified")
            else:
                texts.add(text)
                pool.append(candidate)
        async with aclosing(best_first(judge, pool, plan.context, language)) as ranked:
            async for question, verdict in ranked:
                if verdict.confidence < VERIFIED:
                    source.drop("not_verified")
                elif source.is_known(question) or _rests_on_used_evidence(question, tally):
                    source.drop("duplicate")
                else:
                    yield with_verdict(balanced(question, tally.keys, rng), verdict)
                    if len(tally.accepted) == plan.request.n:
                        return

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
            **dict(plan.start),
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


def _said(question: Question) -> str:
    """What two candidates share that differ in nothing but the order of their options."""
    wrong = sorted(map(comparable, question.distractors))
    return "\n".join([comparable(question.question), comparable(question.key_text), *wrong])


def _rests_on_used_evidence(question: Question, tally: Tally) -> bool:
    """A sentence that was asked about already, answered by the same key."""
    if question.evidence is None:
        return False
    return any(
        other.evidence is not None
        and other.evidence.start == question.evidence.start
        and other.key_text.casefold() == question.key_text.casefold()
        for other in tally.accepted
    )
