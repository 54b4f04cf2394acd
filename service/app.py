"""The only place that builds the service's parts and joins them."""

from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from model_registry import ModelRegistry
from service.backends.opening import open_backend as open_configured_backend
from service.config import ServiceConfig
from service.merged import OpenBackend
from service.openapi import OPENAPI
from service.problems import answer_problem
from service.request_log import RequestLog
from service.routes.adapters import get_adapter, list_adapters
from service.routes.health import live, metrics, ready
from service.routes.page import page_router
from service.routes.questions import generate
from service.routes.registry import registry_router
from service.runtime import Runtime
from service.schema import MAX_BODY_BYTES


def create_app(
    config: ServiceConfig,
    registry: ModelRegistry | None = None,
    open_backend: OpenBackend = open_configured_backend,
) -> Litestar:
    """The service as an ASGI application.

    Args:
        registry: Opened from `config.registry` if left out.
        open_backend: What opens the backend named by the configuration; tests pass their own.
    """

    def open_registry() -> ModelRegistry:
        return registry or ModelRegistry.open(config.registry, config.registry_store)

    runtime = Runtime(config, open_registry, open_backend)

    @asynccontextmanager
    async def lifespan(app: Litestar):
        async with runtime.running():
            yield

    return Litestar(
        route_handlers=[
            generate,
            list_adapters,
            get_adapter,
            live,
            ready,
            metrics,
            registry_router(),
            page_router(),
        ],
        dependencies={"runtime": Provide(lambda: runtime, use_cache=True, sync_to_thread=False)},
        exception_handlers={Exception: answer_problem},
        middleware=[RequestLog(runtime.metrics)],
        lifespan=[lifespan],
        openapi_config=OPENAPI,
        logging_config=None,  # `service.logs` does it, once, for every library
        request_max_body_size=MAX_BODY_BYTES,
        state=State({"runtime": runtime}),
    )
