"""What a request can meet in the service, beside the errors of the domain and the registry.

ServiceError
├── BackendError
│   ├── AdapterRejectedError    the adapter's tensors do not fit the loaded base, or do nothing
│   ├── ContextTooLongError     prompt and completion exceed the context window
│   ├── MergedModelRejectedError  merged weights that give no finite numbers
│   ├── NoRoomError             a model does not fit into memory
│   ├── BackendOverloadedError  the queue is full; try again later
│   └── BackendFailedError      the model failed at this request
├── UnknownVariantError         no such variant of the adapter
├── TooManyQuestionsError       more questions than one request may ask for
├── AdminDisabledError          no admin token is set, so nothing may be changed over HTTP
├── AdminRequiredError          the admin token is missing or wrong
├── RequestTimeoutError         the deadline passed before anything was ready
└── NotReadyError               the base model is still loading, or the server is draining
"""

from typing import ClassVar

from mcq.errors import McqError


class ServiceError(McqError):
    """Base of the service's own errors."""

    retry_after_s: ClassVar[int | None] = None
    """After how many seconds the same request may succeed, if it may."""


class BackendError(ServiceError):
    """A backend could not do what it was asked."""


class AdapterRejectedError(BackendError):
    """The adapter's tensors do not fit the loaded base model, or change nothing."""

    def __init__(self, adapter: str, reason: str) -> None:
        super().__init__(f"The adapter {adapter} cannot be served: {reason}")
        self.adapter = adapter
        self.reason = reason


class MergedModelRejectedError(BackendError):
    """Merged weights that give no finite numbers in their precision."""

    def __init__(self, variant: str, version: str) -> None:
        super().__init__(
            f"{variant} overflows in its precision; merge again with "
            f"`python -m model_registry merge {version} --dtype bf16`, or serve the adapter"
        )
        self.variant = variant


class NoRoomError(BackendError):
    """A model does not fit into memory beside what is there."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(f"{model} does not fit into memory: {detail}")
        self.detail = detail


class ContextTooLongError(BackendError):
    """Prompt and completion exceed the context window."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"The context takes {tokens} tokens and {limit} fit; send a shorter paragraph"
        )
        self.tokens = tokens
        self.limit = limit


class BackendOverloadedError(BackendError):
    """The queue is full; the same request may succeed later."""

    retry_after_s: ClassVar[int | None] = 2

    def __init__(self) -> None:
        super().__init__(f"The model is busy; try again in {self.retry_after_s} seconds")


class BackendFailedError(BackendError):
    """The model failed at this request; the cause is in the log, not in the message."""

    def __init__(self, detail: str = "The model failed at this request; try again") -> None:
        super().__init__(detail)


class UnknownVariantError(ServiceError):
    """No such variant of the adapter is served here."""

    def __init__(self, adapter: str, variant: str, known: tuple[str, ...]) -> None:
        super().__init__(f"{adapter} has no variant {variant!r} here; served: {', '.join(known)}")
        self.variant = variant
        self.known = known


class TooManyQuestionsError(ServiceError, ValueError):
    """More questions than one request may ask for."""

    def __init__(self, asked: int, limit: int) -> None:
        super().__init__(f"n is {asked}; one request may ask for at most {limit} questions")
        self.asked = asked
        self.limit = limit


class AdminDisabledError(ServiceError):
    """No admin token is set, so nothing may be changed over HTTP."""

    def __init__(self) -> None:
        super().__init__(
            "Changes over HTTP are off here: the operator has to set MCQ_ADMIN_TOKEN; "
            "`python -m model_registry` works without it"
        )


class AdminRequiredError(ServiceError):
    """The admin token is missing or wrong."""

    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}

    def __init__(self) -> None:
        super().__init__("Send the admin token: `Authorization: Bearer …`")


class RequestTimeoutError(ServiceError):
    """The deadline passed before any question was ready."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"No question was ready after {seconds:g} s; ask for fewer, or again")


class NotReadyError(ServiceError):
    """The base model is still loading, or the server is draining."""

    retry_after_s: ClassVar[int | None] = 5

    def __init__(self, state: str) -> None:
        super().__init__(f"The service is {state}; try again in {self.retry_after_s} seconds")
        self.state = state
