"""Everything that can go wrong between a caller and the service.

McqClientError
├── UnreachableError            no connection: the address is wrong or nothing listens there
├── NoAnswerError               also TimeoutError   connected, but no answer in time
├── UnexpectedAnswerError       an answer that is not the service's, such as a proxy's page
├── BrokenStreamError           the stream ended before it was done
└── ProblemError                the service said no, and why
    ├── InvalidRequestError     also ValueError   a field of the request is wrong
    ├── InvalidContextError     also ValueError   too short, too long, empty or not text
    ├── NotFoundError           also LookupError
    │   ├── UnknownAdapterError     no such adapter, version or alias
    │   └── UnknownVariantError     no such variant of it
    ├── AdapterUnusableError    the adapter is broken, or was made for another base model
    ├── RetryableError          the same request may succeed later
    │   ├── OverloadedError
    │   └── NotReadyError
    ├── DeadlineError           also TimeoutError   the service gave up waiting for its model
    └── ServiceFailedError      a fault of the service, not of the request

A problem is told apart by the `code` in its body; only a body without one is told by its status.
"""

from collections.abc import Mapping
from typing import Any


class McqClientError(Exception):
    """Base of all; `str(error)` is one sentence."""


class UnreachableError(McqClientError):
    """No connection could be made."""


class NoAnswerError(McqClientError, TimeoutError):
    """The service did not answer in time."""


class UnexpectedAnswerError(McqClientError):
    """What answered does not speak the contract of the service."""


class BrokenStreamError(McqClientError):
    """The stream ended before the service said that it was done."""


class ProblemError(McqClientError):
    """The service refused, with a problem document or with a bare status."""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str | None = None,
        retry_after_s: float | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.extras = dict(extras or {})
        """The members of the problem document beside the standard ones."""


class InvalidRequestError(ProblemError, ValueError):
    """A field of the request is wrong; `errors` names each."""

    @property
    def errors(self) -> list[dict[str, str]]:
        """One `{"field", "message"}` for each thing that is wrong."""
        return self.extras.get("errors") or []

    def __str__(self) -> str:
        named = [f"{error.get('field')}: {error.get('message')}" for error in self.errors]
        unsaid = [text for text in named if text not in self.detail]
        return f"{self.detail} ({'; '.join(unsaid)})" if unsaid else self.detail


class InvalidContextError(ProblemError, ValueError):
    """The context is too short, too long, empty or not text; `code` says which."""


class NotFoundError(ProblemError, LookupError):
    """There is nothing of that name."""


class UnknownAdapterError(NotFoundError):
    """No such adapter, version or alias."""


class UnknownVariantError(NotFoundError):
    """The adapter has no such variant here."""


class AdapterUnusableError(ProblemError):
    """The adapter is broken, or was made for another base model."""


class RetryableError(ProblemError):
    """The same request may succeed later."""


class OverloadedError(RetryableError):
    """The queue of the service is full."""


class NotReadyError(RetryableError):
    """The service is loading its model, or going away."""


class DeadlineError(ProblemError, TimeoutError):
    """The service gave up waiting for its model."""


class ServiceFailedError(ProblemError):
    """A fault of the service or its model."""


ERROR_OF_CODE: dict[str, type[ProblemError]] = {
    "invalid-request": InvalidRequestError,
    "context-too-short": InvalidContextError,
    "context-too-long": InvalidContextError,
    "context-empty": InvalidContextError,
    "context-not-text": InvalidContextError,
    "unknown-adapter": UnknownAdapterError,
    "unknown-version": UnknownAdapterError,
    "unknown-alias": UnknownAdapterError,
    "version-deleted": UnknownAdapterError,
    "invalid-reference": UnknownAdapterError,
    "unknown-variant": UnknownVariantError,
    "adapter-rejected": AdapterUnusableError,
    "base-mismatch": AdapterUnusableError,
    "precision-mismatch": AdapterUnusableError,
    "unknown-prompt-format": AdapterUnusableError,
    "untrusted": AdapterUnusableError,
    "corrupt-artifact": AdapterUnusableError,
    "overloaded": OverloadedError,
    "not-ready": NotReadyError,
    "registry-unavailable": NotReadyError,
    "no-room": ServiceFailedError,
    "timeout": DeadlineError,
    "backend-failed": ServiceFailedError,
    "malformed-completion": ServiceFailedError,
    "base-model": ServiceFailedError,
    "not-found": NotFoundError,
    "internal": ServiceFailedError,
}

ERROR_OF_STATUS: dict[int, type[ProblemError]] = {
    400: InvalidRequestError,
    404: NotFoundError,
    409: AdapterUnusableError,
    413: InvalidContextError,
    422: InvalidRequestError,
    429: OverloadedError,
    503: NotReadyError,
    504: DeadlineError,
}

_STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code"})


def problem_error(
    body: Mapping[str, Any], status: int, retry_after_s: float | None = None
) -> ProblemError:
    """The typed error of a problem document; `status` and `retry_after_s` fill what it omits."""
    code = body.get("code")
    code = code if isinstance(code, str) else _code_in_type(body.get("type"))
    named = body.get("status")
    status = named if isinstance(named, int) else status
    wait = body.get("retry_after_s")
    wait = float(wait) if isinstance(wait, int | float) and wait >= 0 else retry_after_s
    kind = ERROR_OF_CODE.get(code or "") or ERROR_OF_STATUS.get(status)
    if kind is None:
        kind = ServiceFailedError if status >= 500 else ProblemError
    detail = body.get("detail") or body.get("title") or f"The service answered {status}"
    return kind(
        " ".join(str(detail).split()),
        status=status,
        code=code,
        retry_after_s=wait,
        extras={name: value for name, value in body.items() if name not in _STANDARD_MEMBERS},
    )


def _code_in_type(kind: object) -> str | None:
    prefix = "urn:tracnghiem:problem:"
    return kind.removeprefix(prefix) if isinstance(kind, str) and prefix in kind else None
