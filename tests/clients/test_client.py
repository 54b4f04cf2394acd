"""Both clients against a scripted service: what is sent, read, retried and refused."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from mcq_client import AsyncMcqClient, McqClient, Question, RetryPolicy, errors
from mcq_client.types import Generation

QUESTION: dict[str, Any] = {
    "id": "q_1",
    "question": "Thủ đô của Việt Nam là gì?",
    "options": {"A": "Huế", "B": "Hà Nội", "C": "Đà Nẵng", "D": "Cần Thơ"},
    "key": "B",
    "evidence": {"start": 0, "end": 6, "text": "Hà Nội"},
    "checks": [{"name": "key_is_longest", "passed": False, "detail": None}],
}
START: dict[str, Any] = {
    "id": "gen_1",
    "base_model": "echo",
    "adapter": {"name": "vi", "version": 3, "digest": "sha256:00"},
    "variant": "adapter",
    "language": "vi",
}
DONE: dict[str, Any] = {**START, "shortfall": 0, "usage": {"candidates": 1}, "new_field": True}
ANSWER: dict[str, Any] = {**DONE, "questions": [QUESTION]}
BUSY: dict[str, Any] = {"code": "overloaded", "detail": "Busy", "retry_after_s": 0.01}

PATIENT = RetryPolicy(max_attempts=3)


def events(*named: tuple[str, dict[str, Any]]) -> httpx.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named)
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def problem(status: int, body: dict[str, Any]) -> httpx.Response:
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"})


class Script:
    """Answers in order and keeps what it was asked; an exception is raised as the network's."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, httpx.Response):
            return answer
        raise answer

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)


Ask = Callable[[Script], Generation]
Stream = Callable[[Script], tuple[list[Question], Generation | None]]


def ask(script: Script) -> Generation:
    with McqClient("http://mcq.test", retry=PATIENT, transport=script.transport) as client:
        return client.generate("đoạn văn", n=2, adapter="vi@best")


def ask_async(script: Script) -> Generation:
    async def run() -> Generation:
        async with AsyncMcqClient(
            "http://mcq.test", retry=PATIENT, transport=script.transport
        ) as client:
            return await client.generate("đoạn văn", n=2, adapter="vi@best")

    return asyncio.run(run())


def stream(script: Script) -> tuple[list[Question], Generation | None]:
    with (
        McqClient("http://mcq.test", retry=PATIENT, transport=script.transport) as client,
        client.stream("đoạn văn", seed=1) as questions,
    ):
        return list(questions), questions.generation


def stream_async(script: Script) -> tuple[list[Question], Generation | None]:
    async def run() -> tuple[list[Question], Generation | None]:
        async with (
            AsyncMcqClient("http://mcq.test", retry=PATIENT, transport=script.transport) as client,
            client.stream("đoạn văn", seed=1) as questions,
        ):
            return [question async for question in questions], questions.generation

    return asyncio.run(run())


both_ask = pytest.mark.parametrize("ask", [ask, ask_async])
both_stream = pytest.mark.parametrize("stream", [stream, stream_async])
all_four = pytest.mark.parametrize("send", [ask, ask_async, stream, stream_async])


@both_ask
def test_a_generation_is_asked_for_and_read(ask: Ask) -> None:
    script = Script(httpx.Response(201, json=ANSWER))
    generation = ask(script)

    request = script.requests[0]
    assert (request.method, request.url.path) == ("POST", "/generate")
    assert json.loads(request.content) == {"context": "đoạn văn", "n": 2, "adapter": "vi@best"}
    assert generation.adapter is not None
    assert (generation.adapter.name, generation.adapter.version) == ("vi", 3)
    question = generation.questions[0]
    assert question.key_text == "Hà Nội"
    assert [flaw.name for flaw in question.flaws] == ["key_is_longest"]


@both_stream
def test_a_stream_hands_out_questions_and_then_the_whole(stream: Stream) -> None:
    script = Script(events(("start", START), ("question", QUESTION), ("later", {}), ("done", DONE)))
    questions, generation = stream(script)

    assert script.requests[0].headers["accept"] == "text/event-stream"
    assert [question.id for question in questions] == ["q_1"]
    assert generation is not None
    assert generation.questions == tuple(questions)
    assert generation.usage.candidates == 1


@both_ask
def test_a_busy_service_is_asked_again(ask: Ask) -> None:
    script = Script(problem(503, BUSY), problem(503, BUSY), httpx.Response(200, json=ANSWER))

    assert ask(script).id == "gen_1"
    assert len(script.requests) == 3


@both_stream
@pytest.mark.parametrize("first", [problem(503, BUSY), events(("start", START), ("error", BUSY))])
def test_a_busy_stream_is_asked_again_before_its_first_question(
    stream: Stream, first: httpx.Response
) -> None:
    first = httpx.Response(first.status_code, headers=first.headers, content=first.content)
    script = Script(first, events(("start", START), ("question", QUESTION), ("done", DONE)))
    questions, _ = stream(script)

    assert len(questions) == 1
    assert len(script.requests) == 2


@both_stream
def test_a_stream_that_has_begun_is_never_sent_twice(stream: Stream) -> None:
    script = Script(events(("start", START), ("question", QUESTION), ("error", BUSY)))

    with pytest.raises(errors.OverloadedError, match="Busy"):
        stream(script)
    assert len(script.requests) == 1


@all_four
def test_patience_ends(send: Callable[[Script], object]) -> None:
    script = Script(*[problem(503, BUSY) for _ in range(3)])

    with pytest.raises(errors.OverloadedError) as caught:
        send(script)
    assert caught.value.retry_after_s == 0.01
    assert len(script.requests) == 3


@all_four
def test_what_a_retry_cannot_mend_is_raised_at_once(send: Callable[[Script], object]) -> None:
    script = Script(problem(404, {"code": "unknown-adapter", "detail": "No adapter x"}))

    with pytest.raises(errors.UnknownAdapterError, match="No adapter x"):
        send(script)


@all_four
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (httpx.ConnectError("refused"), errors.UnreachableError),
        (httpx.ConnectTimeout("slow"), errors.UnreachableError),
        (httpx.ReadTimeout("slow"), errors.NoAnswerError),
        (httpx.RemoteProtocolError("cut"), errors.BrokenStreamError),
    ],
)
def test_the_networks_faults_are_translated(
    send: Callable[[Script], object], fault: httpx.TransportError, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"http://mcq\.test"):
        send(Script(fault))


@both_ask
@pytest.mark.parametrize(
    "answer", [{"text": "<html>Log in</html>"}, {"json": []}, {"json": {"id": "gen_1"}}]
)
def test_an_answer_of_something_else_is_refused(ask: Ask, answer: dict[str, Any]) -> None:
    with pytest.raises(errors.UnexpectedAnswerError, match="POST /generate"):
        ask(Script(httpx.Response(200, **answer)))


@both_stream
def test_a_page_instead_of_a_stream_is_refused(stream: Stream) -> None:
    with pytest.raises(errors.UnexpectedAnswerError, match="text/html"):
        stream(Script(httpx.Response(200, html="<p>Log in</p>")))


@both_stream
def test_a_stream_cut_short_is_not_taken_for_done(stream: Stream) -> None:
    with pytest.raises(errors.BrokenStreamError, match="after 1 question"):
        stream(Script(events(("start", START), ("question", QUESTION))))


@both_stream
def test_an_error_event_that_is_no_problem_document_is_still_an_error(stream: Stream) -> None:
    page = httpx.Response(
        200, text="event: error\ndata: oops\n\n", headers={"content-type": "text/event-stream"}
    )
    with pytest.raises(errors.UnexpectedAnswerError):
        stream(Script(page))


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "http://[", ""])
def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(errors.UnreachableError), McqClient(address) as client:
        client.adapters()


def test_a_misspelt_option_is_a_type_error() -> None:
    script = Script()
    with (
        McqClient("http://mcq.test", transport=script.transport) as client,
        pytest.raises(TypeError, match="adaptor"),
    ):
        client.generate("đoạn văn", adaptor="vi")  # pyright: ignore[reportCallIssue]
    assert script.requests == []


def test_the_name_of_an_adapter_cannot_lead_elsewhere() -> None:
    script = Script(httpx.Response(200, json={"name": "../generate"}))
    with McqClient("http://mcq.test/api", transport=script.transport) as client:
        client.adapter("../generate")
    assert script.requests[0].url.raw_path == b"/api/adapters/..%2Fgenerate"


@pytest.mark.parametrize("answers", [[503], [httpx.ConnectError("refused")], [200]])
def test_readiness_is_a_yes_or_a_no(answers: Sequence[int | httpx.TransportError]) -> None:
    script = Script(*[httpx.Response(a) if isinstance(a, int) else a for a in answers])
    with McqClient("http://mcq.test", transport=script.transport) as client:
        assert client.is_ready() is (answers == [200])
