"""Names that move: an alias points at one version, and every move is an event that stays."""

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from model_registry.adapter import AdapterRef, check_name
from model_registry.errors import AliasConflictError, AliasNotFoundError, GateRefusedError
from model_registry.gates import is_signed, read_gate
from model_registry.index import queries
from model_registry.index.database import Transaction, now
from model_registry.index.tables import alias, alias_event


@dataclass(frozen=True)
class AliasState:
    """Where an alias points; `revision` counts its moves, for compare-and-swap."""

    name: str
    alias: str
    number: int | None
    revision: int
    updated_at: str

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "name": self.name,
            "alias": self.alias,
            "version": self.number,
            "revision": self.revision,
            "updated_at": self.updated_at,
        }


@dataclass(frozen=True)
class AliasEvent:
    """One move of an alias."""

    revision: int
    from_number: int | None
    to_number: int | None
    at: str
    actor: str
    reason: str
    kind: Literal["move", "rollback"] = "move"

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "revision": self.revision,
            "from": self.from_number,
            "to": self.to_number,
            "at": self.at,
            "actor": self.actor,
            "reason": self.reason,
            "kind": self.kind,
        }


@dataclass(frozen=True)
class Expected:
    """What the caller believes the alias to be; None means that it does not matter."""

    number: int | None = None
    """Version number, 0 for an alias that is not set."""
    revision: int | None = None
    """Number of moves so far, 0 for an alias that never was set."""


def read_alias(connection: sa.Connection, name: str, label: str) -> AliasState:
    """The alias as it is; unset with revision 0 when it never was set."""
    row = connection.execute(
        sa.select(alias).where(alias.c.name == name, alias.c.alias == label)
    ).first()
    if row is None:
        return AliasState(name, label, None, 0, "")
    return AliasState(name, label, row.number, row.revision, row.updated_at)


def move_alias(
    transaction: Transaction,
    name: str,
    label: str,
    number: int | None,
    *,
    expected: Expected,
    reason: str,
    kind: Literal["move", "rollback"] = "move",
) -> AliasState:
    """Point an alias at a version, or at none; nothing happens when it is there already.

    Raises:
        AliasConflictError: It is not where the caller believes it to be.
        GateRefusedError: The version does not meet what the alias demands.
        NotFoundError, VersionDeletedError: There is no such version to point at.
    """
    check_name(label, "alias")
    if number is not None:
        queries.find_version(transaction.connection, AdapterRef(name, number=number))
    current = read_alias(transaction.connection, name, label)
    _compare(current, expected)
    if number is not None and kind == "move" and number != current.number:
        _pass_gate(transaction, name, label, number)
    if current.number == number:
        if number is None:
            raise AliasNotFoundError(name, label)
        return current
    moved = AliasState(name, label, number, current.revision + 1, now())
    values = {
        "number": number,
        "revision": moved.revision,
        "updated_at": moved.updated_at,
        "changed": transaction.revision,
    }
    if current.revision == 0:
        transaction.execute(sa.insert(alias).values(name=name, alias=label, **values))
    else:
        same = sa.update(alias).where(alias.c.name == name, alias.c.alias == label)
        transaction.execute(same.values(values))
    transaction.execute(
        sa.insert(alias_event).values(
            name=name,
            alias=label,
            revision=moved.revision,
            from_number=current.number,
            to_number=number,
            at=moved.updated_at,
            actor=transaction.actor,
            reason=reason,
            kind=kind,
        )
    )
    detail = {"from": current.number, "to": number, "revision": moved.revision, "reason": reason}
    transaction.record("alias", f"{name}@{label}", detail)
    return moved


def _pass_gate(transaction: Transaction, name: str, label: str, number: int) -> None:
    rules = read_gate(transaction.connection, name, label)
    if rules is None:
        return
    version = queries.find_version(transaction.connection, AdapterRef(name, number=number))
    signed = is_signed(transaction.connection, version.digest)
    failures = rules.failures(version.manifest, signed=signed)
    if failures:
        raise GateRefusedError(name, label, number, failures)


def alias_history(connection: sa.Connection, name: str, label: str) -> tuple[AliasEvent, ...]:
    """All moves, newest first."""
    rows = connection.execute(
        sa.select(alias_event)
        .where(alias_event.c.name == name, alias_event.c.alias == label)
        .order_by(alias_event.c.revision.desc())
    ).all()
    if not rows:
        raise AliasNotFoundError(name, label)
    return tuple(
        AliasEvent(
            row.revision, row.from_number, row.to_number, row.at, row.actor, row.reason, row.kind
        )
        for row in rows
    )


def rollback_alias(transaction: Transaction, name: str, label: str, reason: str) -> AliasState:
    """Back to where the alias pointed before it came to where it is now.

    A second rollback goes one step further back, not forth again: moves that were undone are
    skipped.
    """
    current = read_alias(transaction.connection, name, label)
    if current.number is None:
        raise AliasNotFoundError(name, label)
    previous = _previous_number(alias_history(transaction.connection, name, label))
    text = reason or f"rollback of revision {current.revision}"
    return move_alias(
        transaction,
        name,
        label,
        previous,
        expected=Expected(revision=current.revision),
        reason=text,
        kind="rollback",
    )


def _previous_number(events: tuple[AliasEvent, ...]) -> int | None:
    undone = 0
    for event in events:
        if event.kind == "rollback":
            undone += 1
        elif undone:
            undone -= 1
        else:
            return event.from_number
    return None


def _compare(current: AliasState, expected: Expected) -> None:
    if expected.revision is not None and expected.revision != current.revision:
        raise AliasConflictError(
            current.name,
            current.alias,
            f"revision {expected.revision}",
            f"revision {current.revision}",
        )
    if expected.number is not None and expected.number != (current.number or 0):
        raise AliasConflictError(
            current.name,
            current.alias,
            f"version {expected.number}" if expected.number else "no version",
            f"version {current.number}" if current.number else "no version",
        )
