"""The outermost middleware: counts, times and logs each request once, never its text."""

import logging
import time
from typing import Any, cast

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

log = logging.getLogger("mcq.requests")
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})


class RequestLog(ASGIMiddleware):
    """Labels are route templates, not raw paths, so their number is bounded."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on and see what status goes out."""
        status = 500
        start = time.perf_counter()

        async def watching_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.requests_in_flight.inc()
        try:
            await next_app(scope, receive, watching_send)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.requests_in_flight.dec()
            self._record(scope, status, seconds)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        request = cast("dict[str, Any]", scope)
        route = str(request.get("path_template") or "unknown")
        method = str(request.get("method", ""))
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if route in _QUIET:  # probes come every few seconds; their answers are a metric
            return
        state: dict[str, Any] = request.get("state", {})
        extra = {**state.get("log", {}), "seconds": round(seconds, 4)}
        if "problem" in state:
            extra["problem"] = state["problem"]
        log.info("%s %s %s", method, route, status, extra=extra)
