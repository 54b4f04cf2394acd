"""Which error is which HTTP status: one table, answered as RFC 9457 problem documents."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from mcq.errors import (
    InvalidContextError,
    InvalidQuestionError,
    MalformedCompletionError,
    McqError,
    UnknownPromptFormatError,
)
from model_registry import errors as registry
from model_registry.bases import errors as bases
from service import errors as service
from service.config import ConfigError
from service.schema import MAX_BODY_BYTES, FieldProblem, Problem

log = logging.getLogger("mcq.problems")
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """What callers see of an error class."""

    status: int
    code: str
    title: str


INTERNAL = Kind(500, "internal", "Internal error")
INVALID_REQUEST = Kind(400, "invalid-request", "Invalid request")

PROBLEMS: Mapping[type[McqError], Kind] = {
    InvalidContextError: Kind(422, "context", "Context refused"),
    InvalidQuestionError: Kind(422, "invalid-question", "Invalid question"),
    MalformedCompletionError: Kind(502, "malformed-completion", "The model wrote no question"),
    UnknownPromptFormatError: Kind(409, "unknown-prompt-format", "Unknown prompt format"),
    registry.InvalidReferenceError: Kind(404, "invalid-reference", "Invalid adapter reference"),
    registry.AdapterNotFoundError: Kind(404, "unknown-adapter", "Unknown adapter"),
    registry.VersionNotFoundError: Kind(404, "unknown-version", "Unknown adapter version"),
    registry.AliasNotFoundError: Kind(404, "unknown-alias", "Unknown alias"),
    registry.VariantNotFoundError: Kind(404, "unknown-variant", "Unknown variant"),
    registry.NotFoundError: Kind(404, "unknown-adapter", "Not in the registry"),
    registry.InvalidAdapterError: Kind(409, "adapter-rejected", "Adapter refused"),
    registry.BaseMismatchError: Kind(409, "base-mismatch", "Made for another base model"),
    registry.PrecisionMismatchError: Kind(409, "precision-mismatch", "Made for another precision"),
    registry.AliasConflictError: Kind(412, "alias-conflict", "Alias moved meanwhile"),
    registry.GateRefusedError: Kind(409, "gate-refused", "Promotion refused"),
    registry.VersionDeletedError: Kind(410, "version-deleted", "Version deleted"),
    registry.VersionInUseError: Kind(409, "version-in-use", "Version in use"),
    registry.MergeError: Kind(409, "merge-refused", "Merge refused"),
    registry.CorruptArtifactError: Kind(500, "corrupt-artifact", "Stored adapter is damaged"),
    registry.SignatureError: Kind(403, "untrusted", "Signature missing or wrong"),
    registry.RegistryError: Kind(503, "registry-unavailable", "Registry unavailable"),
    bases.BaseModelError: Kind(500, "base-model", "Base model unusable"),
    service.AdapterRejectedError: Kind(409, "adapter-rejected", "Adapter refused"),
    service.ContextTooLongError: Kind(422, "context-too-long", "Context too long"),
    service.MergedModelRejectedError: Kind(409, "adapter-rejected", "Merged weights refused"),
    service.NoRoomError: Kind(503, "no-room", "Not enough memory"),
    service.BackendOverloadedError: Kind(503, "overloaded", "Overloaded"),
    service.BackendFailedError: Kind(502, "backend-failed", "The model failed"),
    service.BackendError: Kind(502, "backend-failed", "The model failed"),
    service.UnknownVariantError: Kind(404, "unknown-variant", "Unknown variant"),
    service.TooManyQuestionsError: INVALID_REQUEST,
    service.AdminDisabledError: Kind(403, "admin-disabled", "Changes are off"),
    service.AdminRequiredError: Kind(401, "admin-required", "Admin token required"),
    service.RequestTimeoutError: Kind(504, "timeout", "Timed out"),
    service.NotReadyError: Kind(503, "not-ready", "Not ready"),
    service.ServiceError: INTERNAL,
    ConfigError: INTERNAL,
    McqError: INTERNAL,
}


def kind_of(error: McqError) -> Kind:
    """The row of an error: its own class's, or that of the nearest base with one."""
    kind = next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)
    if isinstance(error, InvalidContextError):
        return Kind(kind.status, f"context-{error.reason.replace('_', '-')}", kind.title)
    return kind


def problem_of(error: Exception) -> Problem:
    """The problem document of any exception; causes of unexpected ones stay in the log."""
    if isinstance(error, McqError):
        kind = kind_of(error)
        if kind.status >= 500 and kind.status != 503:
            log.error("request failed: %s", error, exc_info=error)
        retry_after_s = error.retry_after_s if isinstance(error, service.ServiceError) else None
        extras = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        detail = str(error) if kind is not INTERNAL else "The cause is in the server's log"
        return _problem(kind, detail, **extras)
    if isinstance(error, ValidationException):
        errors = [_field_problem(entry) for entry in _entries(error)]
        detail = "; ".join(f"{e.field}: {e.message}" for e in errors) or error.detail
        return _problem(INVALID_REQUEST, detail, errors=errors)
    if isinstance(error, HTTPException) and error.status_code < HTTP_500_INTERNAL_SERVER_ERROR:
        return _problem(_http_kind(error), _http_detail(error))
    log.error("unexpected error", exc_info=error)
    return _problem(INTERNAL, "The cause is in the server's log")


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Exception handler of the whole application."""
    problem = problem_of(error)
    request.scope["state"]["problem"] = problem.code
    headers: dict[str, str] = dict(getattr(error, "headers", None) or {})
    retry_after = (problem.model_extra or {}).get("retry_after_s")
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return Response(
        problem.model_dump(mode="json", exclude_defaults=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def _problem(kind: Kind, detail: str, **extras: Any) -> Problem:
    return Problem(
        type=f"urn:tracnghiem:problem:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=kind.code,
        **extras,
    )


def _http_kind(error: HTTPException) -> Kind:
    if error.status_code == 400:
        return INVALID_REQUEST
    phrase = {404: "Not found", 405: "Method not allowed", 413: "Body too large"}
    title = phrase.get(error.status_code, "Request refused")
    return Kind(error.status_code, title.lower().replace(" ", "-"), title)


def _http_detail(error: HTTPException) -> str:
    if error.status_code == 413:
        return f"The body may have at most {MAX_BODY_BYTES:,} bytes; send one section at a time"
    return error.detail


def _entries(error: ValidationException) -> list[dict[str, Any]]:
    extra = error.extra
    return [dict(entry) for entry in extra] if isinstance(extra, list) else []


def _field_problem(entry: dict[str, Any]) -> FieldProblem:
    field = str(entry.get("key") or entry.get("source") or "body")
    return FieldProblem(field=field, message=str(entry.get("message", "is not valid")))
