"""Questions to the index that change nothing."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from model_registry.adapter import (
    DEFAULT_ALIAS,
    AdapterManifest,
    AdapterRef,
    AdapterSummary,
    AdapterVersion,
)
from model_registry.errors import (
    AdapterNotFoundError,
    AliasNotFoundError,
    CorruptArtifactError,
    VersionDeletedError,
    VersionNotFoundError,
)
from model_registry.index.tables import adapter, alias, version

Row = sa.Row[Any]


def find_version(
    connection: Connection, ref: AdapterRef, *, deleted: bool = False
) -> AdapterVersion:
    """The version that a reference means right now.

    Raises:
        NotFoundError: One of its kinds: no such adapter, version or alias.
        VersionDeletedError: It was deleted, and `deleted` does not ask for such ones.
    """
    row = _find_row(connection, ref)
    if row.status != "ready" and not deleted:
        raise VersionDeletedError(f"{row.name}/{row.number}")
    return version_from_row(row)


def find_by_digest(connection: Connection, name: str, digest: str) -> AdapterVersion | None:
    """The version of an adapter with this content, in whatever state."""
    row = connection.execute(
        sa.select(version).where(version.c.name == name, version.c.digest == digest)
    ).first()
    return None if row is None else version_from_row(row)


def list_versions(connection: Connection, name: str) -> tuple[AdapterVersion, ...]:
    """All versions of an adapter, deleted ones too, newest first."""
    rows = connection.execute(
        sa.select(version).where(version.c.name == name).order_by(version.c.number.desc())
    ).all()
    if not rows:
        raise AdapterNotFoundError(name)
    return tuple(version_from_row(row) for row in rows)


def list_summaries(
    connection: Connection, *, limit: int | None, after: str, prefix: str
) -> tuple[AdapterSummary, ...]:
    """One line per adapter, by name; a page of them when a limit is given."""
    wanted = sa.select(adapter).where(adapter.c.name > after).order_by(adapter.c.name)
    if prefix:
        wanted = wanted.where(adapter.c.name.startswith(prefix, autoescape=True))
    if limit is not None:
        wanted = wanted.limit(limit)
    rows = connection.execute(wanted).all()
    if not rows:
        return ()
    span = (rows[0].name, rows[-1].name)
    counted = connection.execute(
        sa.select(
            version.c.name,
            sa.func.count().label("versions"),
            sa.func.max(version.c.number).label("latest"),
            sa.func.max(version.c.created_at).label("updated_at"),
        )
        .where(version.c.status == "ready", version.c.name.between(*span))
        .group_by(version.c.name)
    ).all()
    counts = {row.name: row for row in counted}
    aliases = _aliases_between(connection, span)
    return tuple(
        AdapterSummary(
            name=row.name,
            latest=counts[row.name].latest if row.name in counts else None,
            versions=counts[row.name].versions if row.name in counts else 0,
            aliases=aliases.get(row.name, {}),
            description=row.description,
            updated_at=counts[row.name].updated_at if row.name in counts else row.created_at,
        )
        for row in rows
    )


def aliases_of(connection: Connection, name: str) -> dict[str, int]:
    """The aliases of one adapter."""
    return _aliases_between(connection, (name, name)).get(name, {})


def version_from_row(row: Row) -> AdapterVersion:
    """A version from its row of the index."""
    return AdapterVersion(
        name=row.name,
        number=row.number,
        digest=row.digest,
        manifest=parse_manifest(row.manifest, f"{row.name}/{row.number}"),
        created_at=row.created_at,
        created_by=row.created_by,
        description=row.description,
        status=row.status,
    )


def parse_manifest(text: str, label: str) -> AdapterManifest:
    """A stored manifest; damage is told from a bug."""
    try:
        return AdapterManifest.model_validate_json(text)
    except ValueError as error:
        raise CorruptArtifactError(f"The manifest of {label}", "it cannot be read") from error


def _aliases_between(connection: Connection, span: tuple[str, str]) -> dict[str, dict[str, int]]:
    rows = connection.execute(
        sa.select(alias.c.name, alias.c.alias, alias.c.number)
        .where(alias.c.name.between(*span), alias.c.number.is_not(None))
        .order_by(alias.c.alias)
    ).all()
    result: dict[str, dict[str, int]] = {}
    for row in rows:
        result.setdefault(row.name, {})[row.alias] = row.number
    return result


def _find_row(connection: Connection, ref: AdapterRef) -> Row:
    if ref.digest is not None:
        same = sa.select(version).where(version.c.digest == ref.digest)
        rows = connection.execute(same.order_by(version.c.id)).all()
        if not rows:
            raise VersionNotFoundError("", ref.digest)
        return _first_ready(rows)
    number = ref.number if ref.number is not None else _number_of(connection, ref)
    row = connection.execute(
        sa.select(version).where(version.c.name == ref.name, version.c.number == number)
    ).first()
    if row is None:
        _require_adapter(connection, ref.name)
        raise VersionNotFoundError(ref.name, number)
    return row


def _first_ready(rows: Sequence[Row]) -> Row:
    return next((row for row in rows if row.status == "ready"), rows[0])


def _number_of(connection: Connection, ref: AdapterRef) -> int:
    number = connection.execute(
        sa.select(alias.c.number).where(
            alias.c.name == ref.name, alias.c.alias == (ref.alias or DEFAULT_ALIAS)
        )
    ).scalar()
    if number is not None:
        return number
    if ref.alias is not None:
        _require_adapter(connection, ref.name)
        raise AliasNotFoundError(ref.name, ref.alias)
    latest = connection.execute(
        sa.select(sa.func.max(version.c.number)).where(
            version.c.name == ref.name, version.c.status == "ready"
        )
    ).scalar()
    if latest is None:
        raise AdapterNotFoundError(ref.name)
    return latest


def _require_adapter(connection: Connection, name: str) -> None:
    found = connection.execute(sa.select(adapter.c.name).where(adapter.c.name == name)).first()
    if found is None:
        raise AdapterNotFoundError(name)
