"""Probes and metrics. Liveness asks for neither the registry nor the model's readiness."""

from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.runtime import Runtime
from service.schema import Health


@get("/health/live", operation_id="live")
async def live(runtime: NamedDependency[Runtime]) -> Response[Health]:
    """Whether the process is of any use; 503 asks for a restart."""
    health = runtime.health
    failed = health.status == "failed"
    return Response(health, status_code=503 if failed else 200)


@get("/health/ready", operation_id="ready")
async def ready(runtime: NamedDependency[Runtime]) -> Response[Health]:
    """Whether requests can be answered now."""
    health = runtime.health
    return Response(health, status_code=200 if health.status == "ok" else 503)


@get("/metrics", operation_id="metrics", media_type=MediaType.TEXT, include_in_schema=False)
async def metrics(runtime: NamedDependency[Runtime]) -> Response[bytes]:
    """Metrics in Prometheus' text format."""
    runtime.metrics.ready.set(runtime.health.status == "ok")
    age_s = runtime.follower.age_s
    runtime.metrics.snapshot_age.set(float("inf") if age_s is None else age_s)
    text = generate_latest(runtime.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
