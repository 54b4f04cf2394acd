"""`/registry`: what the registry knows, and its writes for who has the admin token.

Every handler runs on a worker thread, JSON included: asking the index is I/O, and a whole snapshot
may be large. Weights do not pass through here.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from litestar import MediaType, Request, Response, Router, delete, get, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from model_registry.api import RegistryApi, Reply
from service.openapi import PROBLEM_RESPONSES
from service.routes.authorization import require_admin
from service.runtime import Runtime
from service.schema import AliasMove, Reason

AnyRequest = Request[None, None, State]
Api = NamedDependency[RegistryApi]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]


def _documented(
    description: str, *problems: int, body: Any = dict[str, Any]
) -> Mapping[int, ResponseSpec]:
    spec = ResponseSpec(body, generate_examples=False, description=description)
    return {200: spec, **PROBLEM_RESPONSES(*problems, 503)}


def _answer(reply: Reply) -> Response[bytes]:
    headers = {"Cache-Control": "no-cache"}
    if reply.etag is not None:
        headers["ETag"] = reply.etag
    if reply.not_modified:
        return Response(b"", status_code=304, headers=headers, media_type=MediaType.JSON)
    body = json.dumps(reply.body, ensure_ascii=False).encode()
    return Response(body, headers=headers, media_type=MediaType.JSON)


def _actor(request: AnyRequest) -> str:
    """Who writes, for history and audit log: the token's bearer, under a name of their choice."""
    name = request.headers.get("x-actor", "").strip()[:80]
    return f"admin ({name})" if name else "admin"


@get(
    "/snapshot",
    operation_id="registry_snapshot",
    responses=_documented("The whole index; its revision is the entity tag"),
    sync_to_thread=True,
)
def snapshot(request: AnyRequest, api: Api) -> Response[bytes]:
    """Everything a reader needs to resolve names; 304 while `If-None-Match` is the newest."""
    return _answer(api.snapshot(request.headers.get("if-none-match")))


@get(
    "/adapters",
    operation_id="registry_adapters",
    responses=_documented("A page by name; `next` is the `after` of the following one"),
    sync_to_thread=True,
)
def adapters(
    api: Api,
    limit: Limit = 100,
    after: FromQuery[str] = "",
    prefix: FromQuery[str] = "",
) -> Response[bytes]:
    """List adapters."""
    return _answer(api.adapters(limit=limit, after=after, prefix=prefix))


@get(
    "/adapters/{name:str}",
    operation_id="registry_adapter",
    responses=_documented("Versions, aliases, and leases: which replica serves what", 404),
    sync_to_thread=True,
)
def adapter(name: FromPath[str], api: Api) -> Response[bytes]:
    """Show an adapter, deleted versions included."""
    return _answer(api.adapter(name))


@get(
    "/adapters/{name:str}/diff",
    operation_id="registry_diff",
    responses=_documented("Dotted field to its two values", 404, 410),
    sync_to_thread=True,
)
def diff(
    name: FromPath[str], one: FromQuery[int], other: FromQuery[int], api: Api
) -> Response[bytes]:
    """In what two versions differ."""
    return _answer(api.diff(name, one, other))


@get(
    "/adapters/{name:str}/versions/{number:int}",
    operation_id="registry_version",
    responses=_documented("Manifest, merged variants, ids of the keys that signed it", 404, 410),
    sync_to_thread=True,
)
def version(
    name: FromPath[str], number: FromPath[int], request: AnyRequest, api: Api
) -> Response[bytes]:
    """Show everything about a version."""
    return _answer(api.version(f"{name}/{number}", request.headers.get("if-none-match")))


@delete(
    "/adapters/{name:str}/versions/{number:int}",
    operation_id="registry_delete",
    status_code=200,
    responses=_documented("The version", 401, 403, 404, 409),
    guards=[require_admin],
    sync_to_thread=True,
)
def delete_version(
    name: FromPath[str],
    number: FromPath[int],
    request: AnyRequest,
    api: Api,
    reason: FromQuery[str] = "",
) -> Response[bytes]:
    """Hide a version that nothing holds; `restore` brings it back."""
    return _answer(api.delete(name, number, reason=reason, actor=_actor(request)))


@post(
    "/adapters/{name:str}/versions/{number:int}/restore",
    operation_id="registry_restore",
    status_code=200,
    responses=_documented("The version", 401, 403, 404),
    guards=[require_admin],
    sync_to_thread=True,
)
def restore_version(
    name: FromPath[str], number: FromPath[int], request: AnyRequest, api: Api
) -> Response[bytes]:
    """Undo a deletion."""
    return _answer(api.restore(name, number, actor=_actor(request)))


@get(
    "/adapters/{name:str}/aliases/{alias:str}",
    operation_id="registry_alias",
    responses=_documented("Where it points, its gate, its history; the revision is the tag", 404),
    sync_to_thread=True,
)
def alias(name: FromPath[str], alias: FromPath[str], api: Api) -> Response[bytes]:
    """Show an alias with all its moves."""
    return _answer(api.alias(name, alias))


@put(
    "/adapters/{name:str}/aliases/{alias:str}",
    operation_id="registry_move_alias",
    responses=_documented("Where it points now", 400, 401, 403, 404, 409, 410, 412),
    guards=[require_admin],
    sync_to_thread=True,
)
def move_alias(
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[AliasMove],
    request: AnyRequest,
    api: Api,
) -> Response[bytes]:
    """Point an alias at a version: promotion. `If-Match` is the tag that was seen, `"0"` for an
    alias that is new; the gate has to be passed."""
    tag = request.headers.get("if-match")
    body = data.model_dump()
    return _answer(api.move_alias(name, alias, body, if_match=tag, actor=_actor(request)))


@delete(
    "/adapters/{name:str}/aliases/{alias:str}",
    operation_id="registry_remove_alias",
    status_code=200,
    responses=_documented("The alias, unset", 401, 403, 404, 412),
    guards=[require_admin],
    sync_to_thread=True,
)
def remove_alias(
    name: FromPath[str], alias: FromPath[str], request: AnyRequest, api: Api
) -> Response[bytes]:
    """Unset an alias; its history stays."""
    tag = request.headers.get("if-match")
    return _answer(api.remove_alias(name, alias, if_match=tag, actor=_actor(request)))


@post(
    "/adapters/{name:str}/aliases/{alias:str}/rollback",
    operation_id="registry_rollback",
    status_code=200,
    responses=_documented("Where it points now", 401, 403, 404),
    guards=[require_admin],
    sync_to_thread=True,
)
def roll_back(
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[Reason],
    request: AnyRequest,
    api: Api,
) -> Response[bytes]:
    """Back to the version before; again goes one further back. Passes every gate."""
    return _answer(api.roll_back(name, alias, reason=data.reason, actor=_actor(request)))


@get(
    "/audit",
    operation_id="registry_audit",
    responses=_documented("Entries, newest first", 401, 403, body=list[dict[str, Any]]),
    guards=[require_admin],
    sync_to_thread=True,
)
def audit(
    api: Api,
    limit: Limit = 100,
    before: FromQuery[int | None] = None,
    subject: FromQuery[str] = "",
) -> Response[bytes]:
    """What was done by whom; `subject` is a prefix such as `mcq-vi/3`."""
    return _answer(api.audit(limit=limit, before=before, subject=subject))


def registry_router() -> Router:
    """All routes under `/registry`."""
    made: list[RegistryApi] = []

    def open_api(runtime: NamedDependency[Runtime]) -> RegistryApi:
        # One for all requests: it keeps the last snapshot, so that only changes are read again.
        if not made:
            made.append(RegistryApi(runtime.follower.registry))
        return made[0]

    return Router(
        path="/registry",
        route_handlers=[
            snapshot,
            adapters,
            adapter,
            diff,
            version,
            delete_version,
            restore_version,
            alias,
            move_alias,
            remove_alias,
            roll_back,
            audit,
        ],
        dependencies={"api": Provide(open_api, sync_to_thread=False)},
    )
