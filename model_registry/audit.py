"""The audit log: every write, in order, each line chained to the one before by its digest."""

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from model_registry.errors import CorruptArtifactError
from model_registry.index.database import audit_digest
from model_registry.index.tables import audit


@dataclass(frozen=True)
class AuditEntry:
    """One thing that somebody did."""

    id: int
    at: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "id": self.id,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "detail": self.detail,
        }


def read_audit(
    connection: sa.Connection, *, limit: int, before: int | None = None, subject: str = ""
) -> tuple[AuditEntry, ...]:
    """Newest first; continue with the id of the last one as `before`."""
    wanted = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(audit.c.id < before)
    if subject:
        wanted = wanted.where(audit.c.subject.startswith(subject, autoescape=True))
    return tuple(
        AuditEntry(row.id, row.at, row.actor, row.action, row.subject, json.loads(row.detail))
        for row in connection.execute(wanted)
    )


def verify_audit(connection: sa.Connection) -> int:
    """Recompute the whole chain; returns the number of lines.

    Raises:
        CorruptArtifactError: A line was changed, removed or put in between.
    """
    previous: str | None = None
    count = 0
    for row in connection.execute(sa.select(audit).order_by(audit.c.id)).mappings():
        expected = audit_digest(previous, {str(key): value for key, value in row.items()})
        if row["digest"] != expected:
            line = row["id"]
            raise CorruptArtifactError("The audit log", f"line {line} does not follow the others")
        previous = row["digest"]
        count += 1
    return count
