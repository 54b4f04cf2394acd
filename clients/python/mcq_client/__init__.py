"""Client of TracNghiem: multiple-choice questions from a paragraph.

`McqClient` blocks, `AsyncMcqClient` is for asyncio; answers are the frozen models of
`mcq_client.types`, everything that goes wrong is a `McqClientError`.

The names are imported when they are first used: httpx and pydantic take most of a second, which
`mcq-client --help` shall not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcq_client.client import AsyncMcqClient, AsyncQuestionStream, McqClient, QuestionStream
    from mcq_client.errors import McqClientError, ProblemError, RetryableError
    from mcq_client.retry import RetryPolicy
    from mcq_client.types import Adapter, AdapterList, Generation, Question

__all__ = [
    "Adapter",
    "AdapterList",
    "AsyncMcqClient",
    "AsyncQuestionStream",
    "Generation",
    "McqClient",
    "McqClientError",
    "ProblemError",
    "Question",
    "QuestionStream",
    "RetryPolicy",
    "RetryableError",
]

_MODULES = ("types", "errors", "retry", "client")


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            found: object = getattr(import_module(f"mcq_client.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'mcq_client' has no attribute {name!r}")
