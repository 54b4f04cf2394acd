"""The candidates of one request, best first, with as little judging as that takes."""

from collections.abc import AsyncGenerator, Sequence

from mcq.confidence import VERIFIED
from mcq.language import Language
from mcq.question import Check, Question
from service.candidates import Candidate
from service.judges import Judge, Verdict

_JUDGED_AT_ONCE = 4
"""Enough to share the reading of the passage; on a CPU each further one costs a second."""


async def best_first(
    judge: Judge, candidates: Sequence[Candidate], context: str, language: Language
) -> AsyncGenerator[tuple[Question, Verdict]]:
    """Questions by falling confidence, each judged only when its turn could have come.

    The likelihood is known before anything is judged, so that there is a most that the judge can
    make of each candidate: one that stays behind a candidate that was judged need not be judged
    before it (branch and bound; the order is that of judging all of them).
    """
    waiting = sorted(
        ((judge.at_most(candidate, context), i) for i, candidate in enumerate(candidates)),
        key=lambda pair: (-pair[0], pair[1]),
    )
    judged: list[tuple[Question, Verdict]] = []
    while waiting or judged:
        while waiting and (not judged or _rank(judged[0])[0] < waiting[0][0]):
            group = [candidates[i] for _, i in waiting[:_JUDGED_AT_ONCE]]
            del waiting[:_JUDGED_AT_ONCE]
            verdicts = await judge.judge(group, context, language)
            judged += zip((c.question for c in group), verdicts, strict=True)
            judged.sort(key=_rank, reverse=True)
        yield judged.pop(0)


def with_verdict(question: Question, verdict: Verdict) -> Question:
    """The question with what is thought of it among its checks."""
    verified = Check(
        name="verified",
        passed=verdict.confidence >= VERIFIED,
        detail=f"{verdict.confidence:.2f}",
    )
    return question.model_copy(update={"checks": (*question.checks, verdict.agreement, verified)})


def _rank(judged: tuple[Question, Verdict]) -> tuple[float, int]:
    question, verdict = judged
    passed = sum(check.passed for check in (*question.checks, verdict.agreement))
    return verdict.confidence, passed
