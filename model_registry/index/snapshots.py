"""The index as a snapshot, read whole the first time and only what changed after that."""

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from model_registry.index.tables import adapter, alias, registry_state, variant, version
from model_registry.snapshot import RegistrySnapshot, StoredVariant, StoredVersion

_T = TypeVar("_T", StoredVersion, StoredVariant)


def read_revision(connection: Connection) -> int:
    """Number of write transactions so far: equal revisions mean equal content."""
    return connection.execute(sa.select(registry_state.c.revision)).scalar_one()


def read_snapshot(connection: Connection, previous: RegistrySnapshot | None) -> RegistrySnapshot:
    """The present state; versions known from before are not read again."""
    revision = read_revision(connection)
    if previous is not None and previous.revision == revision:
        return previous
    # A smaller revision is another index behind the same URL: nothing known holds any more.
    if previous is None or previous.revision > revision:
        previous = RegistrySnapshot()
    since = previous.revision
    versions = {
        (item.name, item.number): item
        for numbers in previous.versions.values()
        for item in numbers.values()
    }
    changed = {
        (row.name, row.number): _pick(StoredVersion, row)
        for row in connection.execute(sa.select(version).where(version.c.changed > since))
    }
    versions.update(changed)
    variants = {
        (item.name, item.number, item.kind): item
        for kinds in previous.variants.values()
        for item in kinds.values()
    }
    for row in connection.execute(sa.select(variant).where(variant.c.changed > since)):
        variants[row.name, row.number, row.kind] = _pick(StoredVariant, row)
    aliases = {name: dict(items) for name, items in previous.aliases.items()}
    for row in connection.execute(sa.select(alias).where(alias.c.changed > since)):
        labels = aliases.setdefault(row.name, {})
        if row.number is None:
            labels.pop(row.alias, None)
        else:
            labels[row.alias] = row.number
    descriptions = {
        row.name: row.description
        for row in connection.execute(sa.select(adapter.c.name, adapter.c.description))
    }
    return RegistrySnapshot.build(
        revision, list(versions.values()), list(variants.values()), aliases, descriptions
    ).with_parsed(previous, set(changed))


def _pick(kind: type[_T], row: sa.Row[Any]) -> _T:
    return kind(**{name: getattr(row, name) for name in kind.__slots__})
