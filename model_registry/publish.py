"""From a directory of files to a version: stage, hash, check, store the bytes, then one row.

Nothing is visible before the last step, a single transaction; a process killed earlier leaves bytes
that `gc` removes. Publishing equal content again returns the version that is already there.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from model_registry.adapter import AdapterManifest, AdapterVersion, FileEntry
from model_registry.base_modules import Shapes
from model_registry.blobs import BlobStore
from model_registry.canonical import canonical_json
from model_registry.compatibility import check_tensors
from model_registry.errors import InvalidAdapterError, VersionDeletedError
from model_registry.index import queries
from model_registry.index.database import Database, Transaction, now
from model_registry.index.tables import adapter, blob_reference, upload, version
from model_registry.peft_config import canonical_config, read_peft_config
from model_registry.staging import ADAPTER_FILES, CONFIG, WEIGHTS, copy_hashed, stage_files

UPLOAD_TIME_S = 24 * 3600
"""How long garbage collection keeps its hands off the bytes of a publish that has not ended."""


@dataclass(frozen=True)
class StagedAdapter:
    """Checked files in a directory of ours, and the manifest over them."""

    directory: Path
    manifest: AdapterManifest


def stage_adapter(
    source: Path,
    staging: Path,
    facts: Mapping[str, object],
    base_shapes: Shapes | None,
    ignored: tuple[str, ...] = (),
    *,
    rewrite_config: bool = True,
) -> StagedAdapter:
    """Copy, check and describe an adapter; `facts` are the manifest's other fields.

    The configuration of a version that comes from another registry is left as it is: its digest is
    part of the version's.

    Raises:
        InvalidAdapterError: With the reason.
    """
    files = stage_files(source, staging, ADAPTER_FILES, ignored)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise InvalidAdapterError("missing_file", f"{source} holds no {name}")
    config = read_peft_config((staging / CONFIG).read_bytes())
    settings, modules = check_tensors(staging / WEIGHTS, config, base_shapes)
    if rewrite_config:
        files[CONFIG] = _rewrite_config(staging, canonical_config(config, modules))
    try:
        manifest = AdapterManifest.model_validate(
            {**facts, "files": files, "adapter": settings.model_dump()}
        )
        # Through its own JSON, so that the manifest in hand is the one that is read back later.
        manifest = AdapterManifest.model_validate_json(manifest.canonical())
    except ValueError as error:
        raise InvalidAdapterError("bad_record", _one_line(error)) from error
    return StagedAdapter(staging, manifest)


def commit(
    database: Database,
    blobs: BlobStore,
    staged: StagedAdapter,
    *,
    name: str,
    actor: str,
    description: str,
    number: int | None = None,
    revive: bool = False,
) -> AdapterVersion:
    """Store the bytes and make the version visible.

    Raises:
        VersionDeletedError: This very content was deleted, and `revive` does not ask for it back.
    """
    manifest = staged.manifest
    with database.read() as connection:
        known = queries.find_by_digest(connection, name, manifest.digest)
    if known is not None and (known.status == "ready" or not revive):
        return _accept(known)
    ticket = announce_upload(database, actor, manifest.digest, manifest.files)
    store_files(blobs, staged.directory, manifest.files)
    blobs.put_manifest(manifest.digest, manifest.canonical())
    with database.write(actor) as transaction:
        number = _insert(transaction, manifest, name, description, number, revive)
        transaction.execute(sa.delete(upload).where(upload.c.id == ticket))
        result = queries.find_by_digest(transaction.connection, name, manifest.digest)
    assert result is not None
    return _accept(result)


def announce_upload(
    database: Database, actor: str, digest: str, files: Mapping[str, FileEntry]
) -> str:
    """Tell garbage collection which bytes are about to be needed, the manifest's too."""
    ticket, expires = str(uuid.uuid4()), now(UPLOAD_TIME_S)
    blobs = {entry.sha256 for entry in files.values()} | {digest.removeprefix("sha256:")}
    with database.write(actor, visible=False) as transaction:
        for blob in sorted(blobs):
            values = {"id": ticket, "blob": blob, "expires_at": expires}
            transaction.execute(sa.insert(upload).values(values))
    return ticket


def store_files(blobs: BlobStore, directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Put the bytes of an artifact into the store."""
    for file_name, entry in files.items():
        blobs.put_file(entry.sha256, directory / file_name)


def refer_to_blobs(transaction: Transaction, owner: str, files: Mapping[str, FileEntry]) -> None:
    """Note which bytes an artifact needs, once."""
    known = transaction.execute(
        sa.select(blob_reference.c.blob).where(blob_reference.c.owner == owner)
    )
    missing = {entry.sha256 for entry in files.values()} - {row.blob for row in known}
    for blob in sorted(missing):
        transaction.execute(sa.insert(blob_reference).values(blob=blob, owner=owner))


def _accept(found: AdapterVersion) -> AdapterVersion:
    if found.status != "ready":
        raise VersionDeletedError(str(found.ref))
    return found


def _insert(
    transaction: Transaction,
    manifest: AdapterManifest,
    name: str,
    description: str,
    wanted: int | None,
    revive: bool,
) -> int:
    known = queries.find_by_digest(transaction.connection, name, manifest.digest)
    if known is not None:
        if known.status != "ready" and revive:
            _revive(transaction, known, manifest)
        return known.number
    _ensure_adapter(transaction, name, description)
    number = _free_number(transaction, name, wanted)
    moment = now()
    transaction.execute(
        sa.insert(version).values(
            name=name,
            number=number,
            digest=manifest.digest,
            manifest=manifest.canonical().decode(),
            description=description,
            status="ready",
            status_at=moment,
            created_at=moment,
            created_by=transaction.actor,
            changed=transaction.revision,
        )
    )
    refer_to_blobs(transaction, manifest.digest, manifest.files)
    transaction.record("publish", f"{name}/{number}", {"digest": manifest.digest})
    return number


def _revive(transaction: Transaction, known: AdapterVersion, manifest: AdapterManifest) -> None:
    transaction.execute(
        sa.update(version)
        .where(version.c.name == known.name, version.c.number == known.number)
        .values(status="ready", status_at=now(), changed=transaction.revision)
    )
    refer_to_blobs(transaction, manifest.digest, manifest.files)
    transaction.record("restore", str(known.ref), {"digest": manifest.digest})


def _ensure_adapter(transaction: Transaction, name: str, description: str) -> None:
    known = transaction.execute(sa.select(adapter).where(adapter.c.name == name)).first()
    if known is None:
        values = {"name": name, "description": description, "created_at": now()}
        transaction.execute(sa.insert(adapter).values(values))
    elif description and description != known.description:
        changed = sa.update(adapter).where(adapter.c.name == name)
        transaction.execute(changed.values(description=description))


def _free_number(transaction: Transaction, name: str, wanted: int | None) -> int:
    """The number asked for when it is free, else the next one; numbers are never used twice."""
    taken = sa.select(version.c.number).where(version.c.name == name)
    if wanted is not None:
        same = transaction.execute(taken.where(version.c.number == wanted)).first()
        if same is None:
            return wanted
    latest = transaction.execute(
        sa.select(sa.func.max(version.c.number)).where(version.c.name == name)
    ).scalar()
    return (latest or 0) + 1


def _rewrite_config(staging: Path, config: dict[str, object]) -> FileEntry:
    original, canonical = staging / CONFIG, staging / f".{CONFIG}"
    try:
        data = json.loads(canonical_json(config))
    except ValueError as error:
        raise InvalidAdapterError("bad_config", f"adapter_config.json: {error}") from error
    canonical.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    original.unlink()
    entry = copy_hashed(canonical, original, limit=ADAPTER_FILES[CONFIG])
    canonical.unlink()
    return entry


def _one_line(error: ValueError) -> str:
    return " ".join(str(error).split())[:300]
