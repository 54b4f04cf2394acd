"""`quality`: candidates are drawn, judged by the reader, and the best that hold are returned."""

import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mcq.parsing import parse_completion
from mcq.question import LETTERS
from service.backends.base import CompletionDelta, CompletionRequest, ScoreRequest
from service.candidates import Candidate
from service.judges import Reader
from service.verifier import best_first
from tests.service.conftest import Serving
from tests.service.scripted_backend import ScriptedBackend

CONTEXT = "RAM giữ tạm dữ liệu đang được xử lí và mất nội dung khi tắt nguồn."


def item(stem: str, right: str, key: str = "A") -> str:
    """A completion whose option at `key` is `right`."""
    options = {letter: f"sai {letter.lower()} {stem.split()[0]}" for letter in LETTERS} | {
        key: right
    }
    lines = [f"Câu hỏi: {stem}", *(f"{letter}. {options[letter]}" for letter in LETTERS)]
    return "\n".join([*lines, f"Đáp án: {key}"])


class ReadingBackend(ScriptedBackend):
    """The reader gives each option text the weight that a test says; 0 to any other."""

    def __init__(self, texts: Sequence[str], beliefs: dict[str, float]) -> None:
        super().__init__(texts)
        self._beliefs = beliefs
        self.scored = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Higher for options that are believed, wherever they stand."""
        self.scored += len(requests)
        return [[self._belief(request, letter) for letter in LETTERS] for request in requests]

    def _belief(self, request: ScoreRequest, letter: str) -> float:
        lines = request.prompt.messages[-1].content.splitlines()
        text = next(line for line in lines if line.startswith(f"{letter}. "))[3:]
        return self._beliefs.get(text, 0.0)


MEMORY = item("Nội dung RAM ra sao khi tắt nguồn?", "Bị mất")
SPEED = item("RAM so với ổ đĩa thì thế nào?", "Nhanh hơn")
WRONG = item("Ổ đĩa cứng dùng để làm gì?", "Quang hợp")


async def ask(serving: Serving, backend: Any, context: str, **fields: Any) -> Any:
    """The answer to one request."""
    async with serving(backend, candidates_balanced=4, candidates_best=6) as client:
        answer = await client.post("/generate", json={"context": context, **fields})
    return answer.json()


async def test_the_candidate_that_the_reader_trusts_most_is_returned(
    serving: Serving, context_vi: str
) -> None:
    backend = ReadingBackend([WRONG, SPEED, MEMORY, "rác"], {"Nhanh hơn": 2.0, "Bị mất": 5.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    assert [q["question"] for q in body["questions"]] == ["Nội dung RAM ra sao khi tắt nguồn?"]
    check = body["questions"][0]["checks"][-1]
    assert (check["name"], check["passed"]) == ("verified", True)
    assert float(check["detail"]) > 0.6
    assert (body["usage"]["candidates"], backend.scored) == (4, 3 * 2)


async def test_what_the_reader_doubts_is_withheld_and_counted(
    serving: Serving, context_vi: str
) -> None:
    backend = ReadingBackend([WRONG, SPEED], {"sai b Ổ": 4.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    assert (body["questions"], body["shortfall"]) == ([], 1)
    assert body["shortfall_reasons"] == {"not_verified": 2, "duplicate": 2}
    assert backend.scored == 2 * 2, "what is drawn again is not read again"


async def test_candidates_are_read_only_as_far_as_they_could_be_the_best() -> None:
    rng = random.Random(3)
    stems = [f"Câu thứ {i} hỏi điều gì?" for i in range(40)]
    beliefs = {f"đúng {i}": rng.uniform(-2, 6) for i in range(40)}
    backend = ReadingBackend([], beliefs)
    reader = Reader(backend, 2)
    drawn = [
        Candidate(parse_completion(item(stem, right), "vi"), -rng.uniform(5, 40))
        for stem, right in zip(stems, beliefs, strict=True)
    ]
    whole = [pair async for pair in best_first(reader, drawn, CONTEXT, "vi")]
    confidences = [verdict.confidence for _, verdict in whole]
    assert confidences == sorted(confidences, reverse=True)
    assert backend.scored == 40 * 2

    backend.scored = 0
    best = await anext(best_first(reader, drawn, CONTEXT, "vi"))
    assert best[0] == whole[0][0], "the same as if all had been read"
    assert backend.scored <= 40


async def test_what_no_reader_could_save_is_not_read(serving: Serving, context_vi: str) -> None:
    class Unlikely(ReadingBackend):
        async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
            async for delta in super().complete(request):
                yield replace(delta, logprob=-90.0)

    backend = Unlikely([MEMORY], {"Bị mất": 9.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    assert (body["questions"], backend.scored) == ([], 0)
    assert body["shortfall_reasons"] == {"not_verified": 4}


async def test_the_reader_sees_every_rotation_of_the_options(
    serving: Serving, context_vi: str
) -> None:
    class FirstLetter(ReadingBackend):
        def _belief(self, request: ScoreRequest, letter: str) -> float:
            return 9.0 if letter == "A" else 0.0

    body = await ask(serving, FirstLetter([MEMORY], {}), context_vi, quality="balanced")
    assert body["questions"] == [], "a reader that always says A agrees with no key"


async def test_flaws_that_no_probability_makes_up_for_are_withheld(
    serving: Serving, context_vi: str
) -> None:
    flawed = item("Nội dung RAM ra sao khi tắt nguồn?", "Bị mất 丢失")
    backend = ReadingBackend([flawed], {"Bị mất 丢失": 9.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    assert (body["questions"], body["shortfall_reasons"]) == ([], {"flawed": 4})


async def test_stems_that_ask_for_reasons_are_given_up_early_where_quality_is_asked_for(
    serving: Serving, context_vi: str
) -> None:
    reason = item("Vì sao nội dung RAM mất khi tắt nguồn?", "Bị mất")
    backend = ReadingBackend([reason, MEMORY], {"Bị mất": 9.0})
    body = await ask(serving, backend, context_vi, quality="balanced")
    assert [q["question"] for q in body["questions"]] == ["Nội dung RAM ra sao khi tắt nguồn?"]
    assert body["shortfall_reasons"] == {"not_recall": 1, "duplicate": 2}
    is_wanted = backend.requests[0].is_wanted
    assert is_wanted is not None
    assert is_wanted("Câu hỏi: Vì")
    assert not is_wanted("Câu hỏi: Vì sao")
    assert not is_wanted("Câu hỏi: Bạn An mua RAM. Bạn")
    body = await ask(serving, ReadingBackend([reason], {}), context_vi, quality="fast")
    assert body["shortfall"] == 0, "fast returns what is well-formed"


async def test_a_pool_serves_different_facts_and_one_fact_once(
    serving: Serving, context_vi: str
) -> None:
    again = item("Khi máy tắt nguồn, RAM mất gì?", "Bị mất")
    backend = ReadingBackend([MEMORY, again, SPEED], {"Nhanh hơn": 4.0, "Bị mất": 5.0})
    body = await ask(serving, backend, context_vi, quality="best", n=2)
    keys = [q["options"][q["key"]] for q in body["questions"]]
    assert keys == ["Bị mất", "Nhanh hơn"]
    assert body["usage"]["candidates"] == 6


@pytest.mark.parametrize("quality", ["fast", "balanced"])
async def test_keys_of_a_set_are_spread_over_the_letters(
    quality: str, serving: Serving, context_vi: str
) -> None:
    stems = [f"Câu thứ {i} hỏi điều gì?" for i in range(8)]
    keys = [f"đúng {i}" for i in range(8)]
    backend = ReadingBackend(
        [item(s, k) for s, k in zip(stems, keys, strict=True)], dict.fromkeys(keys, 5.0)
    )
    body = await ask(serving, backend, context_vi, quality=quality, n=8)
    assert len(body["questions"]) >= 4
    counts = Counter(q["key"] for q in body["questions"])
    assert max(counts.values()) <= -(-len(body["questions"]) // 4)
    for question in body["questions"]:
        assert question["options"][question["key"]].startswith("đúng")


async def test_a_context_longer_than_the_window_is_refused(
    serving: Serving, context_vi: str
) -> None:
    async with serving(max_context_words=100_000) as client:
        answer = await client.post("/generate", json={"context": context_vi * 700})
    assert (answer.status_code, answer.json()["code"]) == (422, "context-too-long")
