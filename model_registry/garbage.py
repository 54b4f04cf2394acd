"""Deletion in three steps, each of which can be looked at: soft delete, purge after a grace, sweep.

A sweep races with publishing: bytes that nobody needs now may be needed a moment later. Therefore a
publish announces its bytes before it looks whether they are there, and a sweep deletes each object
inside a write transaction in which it has looked at references and announcements: write
transactions take turns.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model_registry.adapter import AdapterRef, AdapterVersion
from model_registry.blobs import BlobStore
from model_registry.errors import CorruptArtifactError, VersionDeletedError, VersionInUseError
from model_registry.holding import holders
from model_registry.index import queries
from model_registry.index.database import Database, Transaction, now
from model_registry.index.tables import blob_reference, lease, upload, variant, version

GRACE_S = 24 * 3600.0
_STAGING_S = 6 * 3600.0


@dataclass
class GarbageReport:
    """What was removed, or would be."""

    deleted: list[str] = field(default_factory=list[str])
    """Old versions that were soft-deleted because of `keep_last`."""
    purged: list[str] = field(default_factory=list[str])
    """Soft-deleted versions whose grace is over."""
    objects: int = 0
    bytes_: int = 0
    folders: int = 0
    """Left-over staging folders and fetched copies of purged versions."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "deleted": self.deleted,
            "purged": self.purged,
            "objects": self.objects,
            "bytes": self.bytes_,
            "folders": self.folders,
        }


def delete_version(transaction: Transaction, ref: AdapterRef, reason: str) -> AdapterVersion:
    """Soft delete: it resolves no more, and everything is still there.

    Raises:
        VersionInUseError: An alias, a pin or a replica holds it.
    """
    found = queries.find_version(transaction.connection, ref)
    held = holders(transaction.connection, found.name, found.number)
    if held:
        raise VersionInUseError(str(found.ref), held)
    _set_status(transaction, found, "deleted")
    transaction.record("delete", str(found.ref), {"reason": reason})
    return found


def restore_version(transaction: Transaction, ref: AdapterRef) -> AdapterVersion:
    """Undo a soft delete.

    Raises:
        CorruptArtifactError: It was purged; its bytes have to be published again.
    """
    found = queries.find_version(transaction.connection, ref, deleted=True)
    if found.status == "purged":
        detail = "its bytes were removed; publish them again with --revive"
        raise CorruptArtifactError(str(found.ref), detail)
    if found.status == "deleted":
        _set_status(transaction, found, "ready")
        transaction.record("restore", str(found.ref), {})
    return queries.find_version(transaction.connection, found.ref)


def collect(
    database: Database,
    blobs: BlobStore,
    cache: Path,
    *,
    actor: str,
    grace_s: float = GRACE_S,
    keep_last: int | None = None,
    dry_run: bool = False,
) -> GarbageReport:
    """Remove what nothing needs and what has been so for longer than the grace."""
    report = GarbageReport()
    if keep_last is not None:
        _delete_old(database, report, keep_last, actor, dry_run)
    gone = _purge(database, report, grace_s, actor, dry_run)
    _forget_expired(database, actor, dry_run)
    _sweep(database, blobs, report, grace_s, actor, dry_run)
    _clean_cache(cache, gone, report, grace_s, dry_run)
    return report


def _delete_old(
    database: Database, report: GarbageReport, keep_last: int, actor: str, dry_run: bool
) -> None:
    with database.read() as connection:
        rows = connection.execute(
            sa.select(version.c.name, version.c.number)
            .where(version.c.status == "ready")
            .order_by(version.c.name, version.c.number.desc())
        ).all()
        seen: dict[str, int] = {}
        old: list[AdapterRef] = []
        for row in rows:
            seen[row.name] = seen.get(row.name, 0) + 1
            if seen[row.name] > keep_last and not holders(connection, row.name, row.number):
                old.append(AdapterRef(row.name, number=row.number))
    for ref in old:
        if not dry_run:
            try:
                with database.write(actor) as transaction:
                    delete_version(transaction, ref, f"older than the last {keep_last}")
            except (VersionInUseError, VersionDeletedError):
                continue  # somebody took or deleted it meanwhile
        report.deleted.append(str(ref))


def _purge(
    database: Database, report: GarbageReport, grace_s: float, actor: str, dry_run: bool
) -> list[str]:
    """Turn old deleted versions into tombstones; returns digests whose local copies may go."""
    due = (version.c.status == "deleted") & (version.c.status_at <= now(-grace_s))
    with database.read() as connection:
        rows = connection.execute(sa.select(version.c.name, version.c.number).where(due)).all()
    gone: list[str] = []
    for row in rows:
        ref = AdapterRef(row.name, number=row.number)
        if dry_run:
            report.purged.append(str(ref))
            continue
        with database.write(actor) as transaction:
            found = queries.find_version(transaction.connection, ref, deleted=True)
            held = holders(transaction.connection, found.name, found.number)
            if found.status != "deleted" or held:
                continue
            gone += _purge_one(transaction, found)
        report.purged.append(str(ref))
    return gone


def _purge_one(transaction: Transaction, found: AdapterVersion) -> list[str]:
    _set_status(transaction, found, "purged")
    of_it = (variant.c.name == found.name) & (variant.c.number == found.number)
    owners = list(transaction.execute(sa.select(variant.c.digest).where(of_it)).scalars())
    transaction.execute(sa.delete(variant).where(of_it))
    # The same content may live on under another name.
    shared = sa.select(version.c.id).where(
        version.c.digest == found.digest, version.c.status != "purged"
    )
    if transaction.execute(shared).first() is None:
        owners.append(found.digest)
    transaction.execute(sa.delete(blob_reference).where(blob_reference.c.owner.in_(owners)))
    transaction.record("purge", str(found.ref), {"digest": found.digest})
    return owners


def _forget_expired(database: Database, actor: str, dry_run: bool) -> None:
    if dry_run:
        return
    with database.write(actor, visible=False) as transaction:
        transaction.execute(sa.delete(upload).where(upload.c.expires_at <= now()))
        transaction.execute(sa.delete(lease).where(lease.c.expires_at <= now()))


def _sweep(
    database: Database,
    blobs: BlobStore,
    report: GarbageReport,
    grace_s: float,
    actor: str,
    dry_run: bool,
) -> None:
    for item in [*blobs.list_blobs(), *blobs.list_manifests()]:
        if item.age_s < grace_s:
            continue
        with database.read() as connection:
            needed = _is_needed(connection, item.digest)
        if needed:
            continue
        if not dry_run:
            with database.write(actor, visible=False) as transaction:
                if _is_needed(transaction.connection, item.digest):
                    continue
                blobs.delete(item.path)
        report.objects += 1
        report.bytes_ += item.size


def _is_needed(connection: sa.Connection, digest: str) -> bool:
    """By a version, by a variant, or by a publish under way."""
    if digest.startswith("sha256:"):
        wanted = [
            sa.select(version.c.id).where(version.c.digest == digest, version.c.status != "purged"),
            sa.select(variant.c.id).where(variant.c.digest == digest),
        ]
    else:
        wanted = [sa.select(blob_reference.c.owner).where(blob_reference.c.blob == digest)]
    announced = sa.select(upload.c.id).where(
        upload.c.blob == digest.removeprefix("sha256:"), upload.c.expires_at > now()
    )
    return any(connection.execute(q.limit(1)).first() is not None for q in [*wanted, announced])


def _clean_cache(
    cache: Path, gone: list[str], report: GarbageReport, grace_s: float, dry_run: bool
) -> None:
    # Another process may be at work in a young folder, whatever the grace.
    grace_s = max(grace_s, _STAGING_S)
    staging = cache / "staging"
    old = [
        path
        for path in (staging.iterdir() if staging.is_dir() else ())
        if time.time() - path.stat().st_mtime >= grace_s
    ]
    copies = [cache / digest.removeprefix("sha256:") for digest in gone]
    for path in [*old, *(path for path in copies if path.is_dir())]:
        report.folders += 1
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True)


def _set_status(transaction: Transaction, found: AdapterVersion, status: str) -> None:
    transaction.execute(
        sa.update(version)
        .where(version.c.name == found.name, version.c.number == found.number)
        .values(status=status, status_at=now(), changed=transaction.revision)
    )
