"""When to send a request again, and how long to wait before.

A generation changes nothing on the server, so sending it twice does no harm.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mcq_client.errors import RetryableError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a client is with a service that is busy or not ready."""

    max_attempts: int = 4
    """Including the first; 1 never retries."""
    max_wait_s: float = 60.0
    """Over all attempts; a `Retry-After` beyond what is left is not waited for."""
    first_wait_s: float = 0.5
    """Where the service names no time; doubled at each attempt."""

    def start(self) -> "Attempts":
        """Begin to count for one request."""
        return Attempts(self)


class Attempts:
    """The attempts of one request."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._made = 1
        self._left_s = policy.max_wait_s

    def wait_after(self, error: RetryableError) -> float:
        """Seconds to wait before the next attempt; raises `error` if there shall be none."""
        if self._made >= self._policy.max_attempts:
            raise error
        wait_s = error.retry_after_s
        if wait_s is None:
            wait_s = self._policy.first_wait_s * 2 ** (self._made - 1)
        if wait_s > self._left_s:
            raise error
        # Clients that were refused together shall not come back together.
        wait_s = min(wait_s * random.uniform(1.0, 1.25), self._left_s)
        self._made += 1
        self._left_s -= wait_s
        return wait_s


def parse_retry_after(value: str | None) -> float | None:
    """Seconds in a `Retry-After` header: a number or an HTTP date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
