"""Every error that this project raises on purpose.

McqError
├── InvalidQuestionError        also ValueError   a question breaks a rule of the domain
├── MalformedCompletionError    also ValueError   a model's text is not a question
├── InvalidContextError         also ValueError   the passage cannot be asked about
├── UnknownPromptFormatError    also LookupError  no prompt format has that name
├── model_registry.errors       what can be wrong with an adapter, a version, a base model
├── training.errors             what can be wrong with a run
└── service.errors              what a request can meet

Misuse and misfortune are different branches below; each error words its own message and carries
the data that a handler needs.
"""


class McqError(Exception):
    """Base of all; `str(error)` is one sentence that says what to do."""


class InvalidQuestionError(McqError, ValueError):
    """A question breaks a rule of the domain."""


class MalformedCompletionError(McqError, ValueError):
    """A model's text is not a question; `reason` is a stable identifier for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"The completion is not a question: {detail}")
        self.reason = reason
        self.detail = detail


class InvalidContextError(McqError, ValueError):
    """The passage is empty, too short, too long or not text; `reason` is a stable identifier."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class UnknownPromptFormatError(McqError, LookupError):
    """No prompt format has that name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"No prompt format is called {name!r}; known: {', '.join(known)}")
        self.name = name
        self.known = known
