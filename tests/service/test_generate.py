"""`POST /generate` as its callers see it."""

import asyncio
import json
import unicodedata
from collections import Counter
from typing import Any

import httpx
import pytest

from mcq.prompts import prompt_format
from mcq.question import Question
from service.backends.echo import EchoBackend
from service.errors import BackendFailedError, BackendOverloadedError
from tests.service.conftest import Serving
from tests.service.scripted_backend import FailingBackend, ScriptedBackend

GOOD = "Câu hỏi: Nội dung RAM ra sao?\nA. còn\nB. mất\nC. nén\nD. chép\nĐáp án: B"
OTHER = GOOD.replace("Nội dung RAM ra sao?", "Khi tắt nguồn thì sao?")


async def events(client: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[str, Any]]:
    """The stream's events."""
    headers = {"Accept": "text/event-stream"}
    async with client.stream("POST", "/generate", json=body, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if block.strip()]
    found: list[tuple[str, Any]] = []
    for block in blocks:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event", "comment"), json.loads(lines.get("data", "null"))))
    return found


async def test_questions_come_back_parsed_and_checked(serving: Serving, context_vi: str) -> None:
    async with serving() as client:
        answer = await client.post("/generate", json={"context": context_vi, "n": 3})
    body = answer.json()
    assert answer.status_code == 200
    assert (len(body["questions"]), body["shortfall"], body["language"]) == (3, 0, "vi")
    assert body["adapter"] is None
    assert body["usage"]["candidates"] >= 3
    for item in body["questions"]:
        question = Question.model_validate(item)
        assert question.checks
        if question.evidence:
            span = context_vi[question.evidence.start : question.evidence.end]
            assert span == question.evidence.text


async def test_a_check_names_options_by_the_letters_that_they_are_returned_under(
    serving: Serving, context_vi: str
) -> None:
    twin = "nội dung của bộ nhớ này bị mất hết ngay khi người dùng tắt nguồn máy"
    said = f"Câu hỏi: RAM ra sao?\nA. {twin}\nB. {twin} đi\nC. còn\nD. nén\nĐáp án: C"
    for seed in range(4):
        async with serving(ScriptedBackend([said])) as client:
            answer = await client.post("/generate", json={"context": context_vi, "seed": seed})
        question = Question.model_validate(answer.json()["questions"][0])
        twins = [letter for letter, text in question.options.items() if text.startswith(twin)]
        detail = next(c.detail for c in question.checks if c.name == "options_overlap")
        assert detail == " ".join(twins)


async def test_one_seed_for_many_passages_puts_keys_at_every_letter(
    serving: Serving, context_vi: str
) -> None:
    async with serving() as client:
        keys = Counter[str]()
        for number in range(24):
            asked = {"context": f"{context_vi} Năm {1900 + number}.", "seed": 1}
            answer = (await client.post("/generate", json=asked)).json()
            keys.update(question["key"] for question in answer["questions"])
    assert set(keys) == set("ABCD"), keys


async def test_the_same_seed_gives_the_same_questions(serving: Serving, context_vi: str) -> None:
    async with serving() as client:
        asked = {"context": context_vi, "n": 3, "seed": 7}
        first, again = [
            (await client.post("/generate", json=asked)).json()["questions"] for _ in range(2)
        ]
        other = (await client.post("/generate", json={**asked, "seed": 8})).json()["questions"]
    assert first == again != other


async def test_a_stream_carries_each_question_and_then_how_it_went(
    serving: Serving, context_vi: str
) -> None:
    async with serving() as client:
        found = await events(client, {"context": context_vi, "n": 2})
    assert [name for name, _ in found] == ["start", "question", "question", "done"]
    assert found[-1][1]["shortfall"] == 0
    assert found[0][1]["id"] == found[-1][1]["id"]
    Question.model_validate(found[1][1])


async def test_a_question_is_streamed_before_the_next_is_complete(
    serving: Serving, context_vi: str
) -> None:
    async with serving(EchoBackend(token_delay_s=0.03), keep_alive_s=0.01) as client:
        found = await events(client, {"context": context_vi, "n": 3, "temperature": 0.5})
    names = [name for name, _ in found]
    assert "comment" in names[names.index("question") : len(names) - names[::-1].index("question")]


async def test_malformed_completions_are_drawn_again(serving: Serving, context_vi: str) -> None:
    backend = ScriptedBackend(["Xin lỗi, tôi không thể.", GOOD.replace("mất", "còn"), GOOD])
    async with serving(backend) as client:
        body = (await client.post("/generate", json={"context": context_vi})).json()
    assert body["questions"][0]["question"] == "Nội dung RAM ra sao?"
    assert body["shortfall_reasons"] == {"no_stem": 1, "invalid_question": 1}
    assert (body["shortfall"], body["usage"]["candidates"]) == (0, 3)


async def test_what_cannot_be_written_is_an_honest_shortfall(
    serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend(["nonsense"])
    async with serving(backend, candidates_per_question=4) as client:
        body = (await client.post("/generate", json={"context": context_vi, "n": 2})).json()
    assert (body["questions"], body["shortfall"]) == ([], 2)
    assert body["shortfall_reasons"] == {"no_stem": 8}


async def test_cut_off_completions_are_not_repaired(serving: Serving, context_vi: str) -> None:
    async with serving(ScriptedBackend([GOOD], finish_reason="length")) as client:
        body = (await client.post("/generate", json={"context": context_vi})).json()
    assert (body["questions"], body["shortfall_reasons"]) == ([], {"too_long": 4})


@pytest.mark.parametrize(
    ("field", "length"), [("Nội dung RAM ra sao?", 395), ("nén", 195)], ids=["stem", "option"]
)
async def test_fields_that_the_grammar_had_to_close_are_dropped(
    field: str, length: int, serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend([GOOD.replace(field, "x" * length), GOOD])
    async with serving(backend) as client:
        body = (await client.post("/generate", json={"context": context_vi})).json()
    assert body["questions"][0]["question"] == "Nội dung RAM ra sao?"
    assert body["shortfall_reasons"] == {"cut_off": 1}


async def test_the_same_question_is_returned_once(serving: Serving, context_vi: str) -> None:
    backend = ScriptedBackend([GOOD, GOOD, GOOD.replace("RAM ra sao?", "RAM  ra sao ?"), OTHER])
    async with serving(backend) as client:
        body = (await client.post("/generate", json={"context": context_vi, "n": 2})).json()
    stems = [item["question"] for item in body["questions"]]
    assert stems == ["Nội dung RAM ra sao?", "Khi tắt nguồn thì sao?"]
    assert body["shortfall_reasons"]["duplicate"] >= 1


async def test_avoided_stems_are_told_to_the_model_and_kept_out(
    serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend([GOOD, OTHER])
    async with serving(backend) as client:
        asked = {"context": context_vi, "avoid": ["nội dung RAM ra sao"]}
        body = (await client.post("/generate", json=asked)).json()
    assert [item["question"] for item in body["questions"]] == ["Khi tắt nguồn thì sao?"]
    expected = prompt_format("chat/1").render(context_vi, "vi", asked["avoid"])  # type: ignore[arg-type]
    assert backend.requests[0].prompt == expected


async def test_the_first_candidate_is_greedy_and_the_others_are_drawn(
    serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend([GOOD, OTHER, "x"])
    async with serving(backend) as client:
        await client.post("/generate", json={"context": context_vi, "n": 2})
    greedy, drawn = backend.requests
    assert (greedy.n, greedy.sampling.temperature) == (1, 0.0)
    assert (drawn.n, drawn.sampling.temperature > 0) == (1, True)


async def test_line_breaks_of_the_passage_are_no_characters_of_a_field(
    serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend([GOOD])
    async with serving(backend) as client:
        await client.post("/generate", json={"context": f"{context_vi}\n二\u2028"})
    extra = backend.requests[0].extra_characters
    assert "二" in extra
    assert not extra & set("\n\u2028")


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"context": ""}, 422, "context-empty", "empty"),
        ({"context": "  \n"}, 422, "context-empty", "empty"),
        ({"context": "Quá ngắn."}, 422, "context-too-short", "at least 20"),
        ({"context": "từ " * 19}, 422, "context-too-short", "19 words"),
        ({"context": "từ " * 2000}, 422, "context-too-long", "at most 1500"),
        ({"context": "\x00" + "từ " * 30}, 422, "context-not-text", "U+0000"),
        ({"context": "\ufffd" + "từ " * 30}, 422, "context-not-text", "U+FFFD"),
        ({"context": "x" * 1_000_000}, 413, "body-too-large", "1,000,000 bytes"),
        ({"n": 0}, 400, "invalid-request", "n: "),
        ({"n": 21}, 400, "invalid-request", "at most 20"),
        ({"n": "two"}, 400, "invalid-request", "n: "),
        ({"context": None}, 400, "invalid-request", "context: "),
        ({"temperature": 3}, 400, "invalid-request", "temperature: "),
        ({"language": "fr"}, 400, "invalid-request", "language: "),
        ({"contxt": "x"}, 400, "invalid-request", "contxt: "),
        ({"adapter": "nobody"}, 404, "unknown-adapter", "nobody"),
        ({"adapter": "../../etc/passwd"}, 404, "invalid-reference", "not a valid reference"),
        ({"variant": "merged"}, 404, "unknown-variant", "merged"),
    ],
)
async def test_bad_requests_get_a_problem_document(
    change: dict[str, Any], status: int, code: str, said: str, serving: Serving, context_vi: str
) -> None:
    async with serving() as client:
        answer = await client.post("/generate", json={"context": context_vi, **change})
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:tracnghiem:problem:{code}"
    assert said in problem["detail"]


async def test_a_stream_that_cannot_begin_is_a_problem_document_and_no_stream(
    serving: Serving,
) -> None:
    async with serving() as client:
        headers = {"Accept": "text/event-stream"}
        answer = await client.post("/generate", json={"context": ""}, headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (422, "context-empty")


_DEEP = b'{"context": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
_UTF_16 = '{"context": "Đoạn văn"}'.encode("utf-16")


@pytest.mark.parametrize(
    "body",
    [
        b'{"context',
        b'{"context": "\xff\xfe"}',
        b'{"context": "\\ud800"}',
        b"",
        b"[]",
        b"\x00\x9f\x92\x96",
        _UTF_16,
        _DEEP,
    ],
    ids=["cut", "not UTF-8", "half a pair", "empty", "no object", "binary", "UTF-16", "deep"],
)
async def test_bodies_that_are_not_json_text_get_a_problem_document(
    body: bytes, serving: Serving
) -> None:
    async with serving() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/generate", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")


async def test_an_overloaded_model_says_when_to_come_again(
    serving: Serving, context_vi: str
) -> None:
    async with serving(FailingBackend(BackendOverloadedError)) as client:
        answer = await client.post("/generate", json={"context": context_vi})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["retry_after_s"] == 2


async def test_a_failing_model_ends_the_stream_with_a_problem(
    serving: Serving, context_vi: str
) -> None:
    async with serving(FailingBackend(BackendFailedError)) as client:
        found = await events(client, {"context": context_vi})
    assert [name for name, _ in found] == ["start", "error"]
    assert found[-1][1]["code"] == "backend-failed"


async def test_unexpected_errors_do_not_show_their_cause(serving: Serving, context_vi: str) -> None:
    async with serving(FailingBackend(lambda: KeyError("secret"))) as client:
        answer = await client.post("/generate", json={"context": context_vi})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


async def test_a_request_that_takes_too_long_ends_with_what_it_has(
    serving: Serving, context_vi: str
) -> None:
    backend = ScriptedBackend(["bad"])
    async with serving(backend, request_timeout_s=1e-6, candidates_per_question=50) as client:
        body = (await client.post("/generate", json={"context": context_vi})).json()
    assert (body["shortfall"], body["shortfall_reasons"]) == (1, {"timeout": 1})


async def test_closing_a_stream_cancels_its_candidates(serving: Serving, context_vi: str) -> None:
    from service.backends.base import CompletionRequest
    from service.streams import with_silences

    backend = ScriptedBackend([GOOD])
    request = CompletionRequest(prompt_format("chat/1").render(context_vi, "vi"), None, n=5)  # type: ignore[arg-type]
    stream = with_silences(backend.complete(request), 1)
    await anext(stream)
    assert backend.running == 1
    await stream.aclose()
    assert backend.running == 0


async def test_concurrent_requests_do_not_mix(serving: Serving, context_vi: str) -> None:
    async with serving(EchoBackend(token_delay_s=0.001)) as client:

        async def ask(seed: int) -> Any:
            asked = {"context": context_vi, "n": 2, "seed": seed}
            return (await client.post("/generate", json=asked)).json()["questions"]

        alone = [await ask(seed) for seed in range(8)]
        together = await asyncio.gather(*(ask(seed) for seed in range(8)))
    assert together == alone


async def test_evidence_indexes_the_context_in_nfc(serving: Serving, context_vi: str) -> None:
    backend = ScriptedBackend([GOOD.replace("mất", "bị mất khi máy tắt nguồn")])
    async with serving(backend) as client:
        asked = {"context": unicodedata.normalize("NFD", context_vi)}
        body = (await client.post("/generate", json=asked)).json()
    evidence = body["questions"][0]["evidence"]
    assert context_vi[evidence["start"] : evidence["end"]] == evidence["text"]
