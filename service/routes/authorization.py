"""Who may change things over HTTP: whoever sends the admin token."""

import hmac
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from service.errors import AdminDisabledError, AdminRequiredError
from service.runtime import Runtime

_SCHEME = "Bearer "


def require_admin(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard of routes.

    Raises:
        AdminDisabledError: No token is set on this server.
        AdminRequiredError: The token is missing or wrong.
    """
    runtime: Runtime = connection.app.state.runtime
    token = runtime.config.admin_token
    if token is None:
        raise AdminDisabledError
    sent = connection.headers.get("authorization", "")
    expected = _SCHEME + token.get_secret_value()
    # Of equal duration whatever was sent, so that a token cannot be found letter by letter.
    if not hmac.compare_digest(sent.encode(), expected.encode()):
        raise AdminRequiredError
