"""A problem document becomes a typed error: its code first, the status second."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from mcq_client import errors
from mcq_client.errors import ERROR_OF_CODE, ProblemError, RetryableError, problem_error
from mcq_client.retry import RetryPolicy, parse_retry_after
from service.problems import PROBLEMS


def test_every_code_that_a_generation_can_meet_has_its_error() -> None:
    from_elsewhere = {
        *("invalid-question", "alias-conflict", "gate-refused", "version-in-use"),
        *("merge-refused", "admin-disabled", "admin-required"),
    }
    served = {kind.code for kind in PROBLEMS.values()} - from_elsewhere - {"context"}
    served |= {f"context-{reason}" for reason in ("empty", "too-short", "too-long", "not-text")}

    assert served - ERROR_OF_CODE.keys() == set()


def test_the_code_in_the_body_outweighs_the_status() -> None:
    error = problem_error({"code": "unknown-adapter", "detail": "No adapter x"}, 503)

    assert type(error) is errors.UnknownAdapterError
    assert (str(error), error.status, error.code) == ("No adapter x", 503, "unknown-adapter")


def test_the_type_stands_in_for_a_missing_code() -> None:
    error = problem_error({"type": "urn:tracnghiem:problem:overloaded", "title": "Busy"}, 500)

    assert type(error) is errors.OverloadedError
    assert str(error) == "Busy"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidRequestError),
        (401, errors.ProblemError),
        (404, errors.NotFoundError),
        (429, errors.OverloadedError),
        (502, errors.ServiceFailedError),
        (503, errors.NotReadyError),
        (504, errors.DeadlineError),
        (599, errors.ServiceFailedError),
    ],
)
@pytest.mark.parametrize("body", [{}, {"code": "from-a-later-service"}, {"code": 7, "status": "x"}])
def test_without_a_known_code_the_status_decides(
    status: int, kind: type[ProblemError], body: dict[str, Any]
) -> None:
    assert type(problem_error(body, status)) is kind


def test_an_invalid_request_names_its_fields_in_one_line() -> None:
    error = problem_error(
        {
            "code": "invalid-request",
            "detail": "The request is\nnot valid",
            "errors": [{"field": "n", "message": "at most 20"}],
        },
        400,
    )

    assert isinstance(error, ValueError)
    assert str(error) == "The request is not valid (n: at most 20)"


def test_what_the_detail_says_is_not_said_twice() -> None:
    named = {"field": "n", "message": "at most 20"}
    error = problem_error(
        {"code": "invalid-request", "detail": "n: at most 20", "errors": [named]}, 400
    )

    assert str(error) == "n: at most 20"


def test_errors_are_also_the_built_in_that_a_caller_expects() -> None:
    assert isinstance(problem_error({"code": "context-empty"}, 422), ValueError)
    assert isinstance(problem_error({"code": "unknown-version"}, 404), LookupError)
    assert isinstance(problem_error({"code": "timeout"}, 504), TimeoutError)


def test_the_wait_is_read_from_the_body_before_the_header() -> None:
    assert problem_error({"code": "overloaded", "retry_after_s": 2}, 503, 9.0).retry_after_s == 2
    assert problem_error({"code": "overloaded"}, 503, 9.0).retry_after_s == 9


def test_retry_after_is_a_number_or_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)

    assert parse_retry_after("7") == 7
    assert 27 < (parse_retry_after(format_datetime(soon, usegmt=True)) or 0) <= 30
    assert parse_retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert parse_retry_after("soon") is None
    assert parse_retry_after(None) is None


def _busy(retry_after_s: float | None) -> RetryableError:
    return errors.OverloadedError("busy", status=503, retry_after_s=retry_after_s)


def test_waits_double_where_the_service_names_no_time_and_then_end() -> None:
    attempts = RetryPolicy(max_attempts=4, first_wait_s=1.0).start()
    waits = [attempts.wait_after(_busy(None)) for _ in range(3)]

    for wait, least in zip(waits, (1.0, 2.0, 4.0), strict=True):
        assert least <= wait <= 1.25 * least
    with pytest.raises(errors.OverloadedError):
        attempts.wait_after(_busy(None))


def test_nobody_waits_longer_than_the_policy_allows() -> None:
    attempts = RetryPolicy(max_wait_s=5.0).start()

    assert 4 <= attempts.wait_after(_busy(4.0)) <= 5
    with pytest.raises(errors.OverloadedError):
        attempts.wait_after(_busy(4.0))
