"""`python -m service`: read the settings, take the port, open the backend, serve."""

import argparse
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported late, so that --help is instant
    from service.config import ServiceConfig

PROGRAM = "python -m service"


def main() -> int:
    """Run until SIGTERM; the exit status is 0 only after an orderly stop."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Serve POST /generate. Every setting is an MCQ_… variable of the environment.",
    )
    parser.add_argument("--settings", action="store_true", help="list the settings and end")
    arguments = parser.parse_args()

    from pydantic import ValidationError

    from mcq.errors import McqError
    from service.config import ENV_PREFIX, SECRETS, ServiceConfig, check_environment

    if arguments.settings:
        for name, field in ServiceConfig.model_fields.items():
            print(f"{ENV_PREFIX}{name.upper():<26} {field.default!s:<42} {field.description}")
        return 0
    try:
        check_environment()
        config = ServiceConfig()
        return _serve(config)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        found = "" if field in SECRETS else f" (it is {first['input']!r})"
        return _fail(f"{ENV_PREFIX}{field.upper()}: {first['msg']}{found}")
    except McqError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.strerror or error} {error.filename or ''}".strip())


def _serve(config: "ServiceConfig") -> int:
    listener = _listen(config.host, config.port)

    import uvicorn

    from service.app import create_app
    from service.logs import configure_logging
    from service.runtime import Runtime

    configure_logging(config.log_format, config.log_level)
    app = create_app(config)

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            """Stop on SIGTERM and SIGINT; not raised again, since an orderly stop is no failure."""
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self.handle_exit)
            yield

    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(config.drain_timeout_s),
            lifespan="on",
        )
    )
    runtime: Runtime = app.state.runtime

    def stop() -> None:
        server.should_exit = True

    runtime.on_failure = stop
    server.run(sockets=[listener])
    return 1 if runtime.health.status == "failed" else 0


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow happens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno,
            f"Cannot listen on {host}:{port} ({error.strerror}); set MCQ_HOST or MCQ_PORT",
        ) from error
    return listener


def _fail(sentence: str) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
