"""What keeps a version alive besides aliases: pins by people, leases by running replicas."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from model_registry.adapter import AdapterVersion
from model_registry.index.database import Transaction, now
from model_registry.index.tables import alias, lease, pin

DEFAULT_LEASE_S = 300.0


@dataclass(frozen=True)
class Lease:
    """A replica has a version loaded."""

    replica: str
    name: str
    number: int
    expires_at: str

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "replica": self.replica,
            "name": self.name,
            "version": self.number,
            "expires_at": self.expires_at,
        }


def renew_leases(
    transaction: Transaction, replica: str, held: Iterable[tuple[str, int]], ttl_s: float
) -> None:
    """Replace what a replica holds; it does so again before the time is over."""
    transaction.execute(sa.delete(lease).where(lease.c.replica == replica[:128]))
    expires = now(ttl_s)
    for name, number in sorted(set(held)):
        values = {"replica": replica[:128], "name": name, "number": number, "expires_at": expires}
        transaction.execute(sa.insert(lease).values(values))


def active_leases(connection: sa.Connection, name: str | None = None) -> tuple[Lease, ...]:
    """Who serves what at this moment."""
    wanted = sa.select(lease).where(lease.c.expires_at > now())
    if name is not None:
        wanted = wanted.where(lease.c.name == name)
    rows = connection.execute(wanted.order_by(lease.c.name, lease.c.number, lease.c.replica))
    return tuple(Lease(row.replica, row.name, row.number, row.expires_at) for row in rows)


def set_pin(transaction: Transaction, version: AdapterVersion, label: str) -> None:
    """Keep a version, under a label that says why."""
    same = _pin(version, label)
    if transaction.execute(sa.select(pin).where(same)).first() is None:
        values = {"name": version.name, "number": version.number, "label": label, "at": now()}
        transaction.execute(sa.insert(pin).values(values))
        transaction.record("pin", str(version.ref), {"label": label})


def remove_pin(transaction: Transaction, version: AdapterVersion, label: str) -> None:
    """The opposite; absent is fine."""
    transaction.execute(sa.delete(pin).where(_pin(version, label)))
    transaction.record("unpin", str(version.ref), {"label": label})


def holders(connection: sa.Connection, name: str, number: int) -> tuple[str, ...]:
    """Everything that keeps a version from being deleted, in words."""
    aliases = connection.execute(
        sa.select(alias.c.alias).where(alias.c.name == name, alias.c.number == number)
    )
    pins = connection.execute(
        sa.select(pin.c.label).where(pin.c.name == name, pin.c.number == number)
    )
    leases = [item for item in active_leases(connection, name) if item.number == number]
    return (
        *(f"alias {row.alias}" for row in aliases),
        *(f"pin {row.label!r}" for row in pins),
        *(f"replica {item.replica}" for item in leases),
    )


def _pin(version: AdapterVersion, label: str) -> sa.ColumnElement[bool]:
    return (pin.c.name == version.name) & (pin.c.number == version.number) & (pin.c.label == label)
