"""`GET /adapters`: what can be asked for, and what this server could not serve, and why."""

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from mcq.errors import McqError
from model_registry.adapter import AdapterSummary, AdapterVersion
from service.openapi import PROBLEM_RESPONSES
from service.runtime import Runtime
from service.schema import AdapterInfo, AdapterList, BaseModelInfo, VersionInfo


@get("/adapters", operation_id="list_adapters", responses=PROBLEM_RESPONSES(503))
async def list_adapters(runtime: NamedDependency[Runtime]) -> AdapterList:
    """List the adapters with their versions and aliases."""
    info = runtime.backend.info
    return AdapterList(
        base_model=BaseModelInfo(
            name=info.base_model,
            backend=info.kind,
            precision=info.precision,
            max_context_tokens=info.max_context_tokens,
        ),
        default=runtime.config.default_adapter,
        adapters=[_info(runtime, summary) for summary in runtime.follower.snapshot.adapters],
    )


@get("/adapters/{name:str}", operation_id="get_adapter", responses=PROBLEM_RESPONSES(404, 503))
async def get_adapter(name: FromPath[str], runtime: NamedDependency[Runtime]) -> AdapterInfo:
    """Show one adapter."""
    snapshot = runtime.follower.snapshot
    snapshot.versions_of(name)  # AdapterNotFoundError
    return next(_info(runtime, summary) for summary in snapshot.adapters if summary.name == name)


def _info(runtime: Runtime, summary: AdapterSummary) -> AdapterInfo:
    versions = runtime.follower.snapshot.versions_of(summary.name)
    return AdapterInfo(
        name=summary.name,
        description=summary.description,
        latest=summary.latest,
        aliases=summary.aliases,
        versions=[_version(runtime, version) for version in versions],
    )


def _version(runtime: Runtime, version: AdapterVersion) -> VersionInfo:
    try:
        runtime.adapters.check(version)
        reason = None
    except McqError as error:
        reason = str(error)
    return VersionInfo(
        version=version.number,
        digest=version.digest,
        created_at=version.created_at,
        prompt_format=version.manifest.prompt_format,
        languages=list(version.manifest.languages),
        precision=version.manifest.precision,
        servable=reason is None,
        reason=reason,
        loaded=version.digest in runtime.adapters.loaded,
        merged=_merged_kind(runtime, version),
    )


def _merged_kind(runtime: Runtime, version: AdapterVersion) -> str | None:
    try:
        return runtime.merged.find(version).kind
    except McqError:
        return None
