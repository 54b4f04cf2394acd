"""`POST /generate`: a paragraph in, questions out, at once or one by one."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import ClientException
from litestar.params import JSONBody
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from pydantic import BaseModel

from mcq.question import Question
from service.generator import QuestionGenerator
from service.openapi import GENERATE_RESPONSES
from service.planning import Plan
from service.problems import answer_problem, problem_of
from service.runtime import Runtime
from service.schema import GenerateDone, GenerateRequest, GenerateResponse
from service.streams import with_silences

EVENT_STREAM = "text/event-stream"


def _not_utf8(request: Request[None, None, State], error: UnicodeDecodeError) -> Response[Any]:
    return answer_problem(request, ClientException(f"The body is not UTF-8 text: {error.reason}"))


def _too_deep(request: Request[None, None, State], error: RecursionError) -> Response[Any]:
    if "log" in request.scope["state"]:  # the body was read: the mistake is ours
        return answer_problem(request, error)
    return answer_problem(request, ClientException("The body is nested too deeply"))


@post(
    "/generate",
    status_code=200,
    operation_id="generate",
    responses=GENERATE_RESPONSES,
    exception_handlers={UnicodeDecodeError: _not_utf8, RecursionError: _too_deep},
)
async def generate(
    request: Request[None, None, State],
    data: JSONBody[GenerateRequest],
    runtime: NamedDependency[Runtime],
) -> Response[GenerateResponse] | ServerSentEvent:
    """Generate questions about a context.

    With `Accept: text/event-stream` the answer is a stream: `start`, one `question` each as soon as
    it is complete, then `done`; or `error` with a problem document.
    """
    generator = runtime.generator
    plan = generator.plan(data)
    request.scope["state"]["log"] = {
        "generation": plan.start.id,
        "adapter": plan.version.engine_name if plan.version else "base",
        "n": data.n,
    }
    if EVENT_STREAM in request.headers.get("accept", ""):
        return ServerSentEvent(_events(generator, plan, runtime.config.keep_alive_s))
    questions: list[Question] = []
    async with aclosing(generator.run(plan)) as items:
        async for item in items:
            if isinstance(item, GenerateDone):
                return Response(GenerateResponse(**dict(item), questions=questions))
            questions.append(item)
    raise AssertionError("a generation always ends with how it went")


async def _events(
    generator: QuestionGenerator, plan: Plan, keep_alive_s: float
) -> AsyncGenerator[ServerSentEventMessage]:
    yield _event("start", plan.start)
    try:
        async with aclosing(with_silences(generator.run(plan), keep_alive_s)) as items:
            async for item in items:
                if item is None:
                    yield ServerSentEventMessage(data=None, comment="keep-alive")
                else:
                    yield _event("done" if isinstance(item, GenerateDone) else "question", item)
    except Exception as error:  # the status line is out: the stream itself has to say it
        yield _event("error", problem_of(error))


def _event(name: str, content: BaseModel) -> ServerSentEventMessage:
    return ServerSentEventMessage(data=content.model_dump_json(), event=name)
