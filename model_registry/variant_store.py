"""Variants in index and store: put beside their version, found, listed."""

from pathlib import Path

import sqlalchemy as sa

from model_registry.adapter import AdapterVersion
from model_registry.blobs import BlobStore
from model_registry.errors import CorruptArtifactError, VariantNotFoundError
from model_registry.index import queries
from model_registry.index.database import Database, Transaction, now
from model_registry.index.tables import blob_reference, upload, variant
from model_registry.publish import announce_upload, refer_to_blobs, store_files
from model_registry.variants import MergedVariant, VariantManifest, preferred_kinds


def put_variant(
    database: Database,
    blobs: BlobStore,
    version: AdapterVersion,
    manifest: VariantManifest,
    directory: Path | None,
    actor: str,
) -> MergedVariant:
    """Store a variant; one of the same kind is replaced. No directory: its bytes are stored
    already.

    The version has to be usable when it becomes visible, not only when the merge began.
    """
    ticket = announce_upload(database, actor, manifest.digest, manifest.files)
    if directory is not None:
        store_files(blobs, directory, manifest.files)
    blobs.put_manifest(manifest.digest, manifest.canonical())
    with database.write(actor) as transaction:
        queries.find_version(transaction.connection, version.ref)
        _replace(transaction, version, manifest)
        transaction.execute(sa.delete(upload).where(upload.c.id == ticket))
        return find_variant(transaction.connection, version, manifest.kind)


def find_variant(
    connection: sa.Connection, version: AdapterVersion, kind: str | None
) -> MergedVariant:
    """The variant of a kind, or the most faithful one there is."""
    found = {item.kind: item for item in list_variants(connection, version)}
    kinds = (kind,) if kind else preferred_kinds(version.manifest.precision)
    for wanted in kinds:
        if wanted in found:
            return found[wanted]
    raise VariantNotFoundError(str(version.ref), kind or "merged")


def list_variants(connection: sa.Connection, version: AdapterVersion) -> tuple[MergedVariant, ...]:
    """All variants of a version."""
    rows = connection.execute(
        sa.select(variant)
        .where(variant.c.name == version.name, variant.c.number == version.number)
        .order_by(variant.c.kind)
    )
    return tuple(
        MergedVariant(
            row.name,
            row.number,
            row.kind,
            row.digest,
            parse_variant(row.manifest, f"{row.name}/{row.number} {row.kind}"),
            row.created_at,
            row.created_by,
        )
        for row in rows
    )


def parse_variant(text: str, label: str) -> VariantManifest:
    """A stored manifest of a variant."""
    try:
        return VariantManifest.model_validate_json(text)
    except ValueError as error:
        raise CorruptArtifactError(f"The manifest of {label}", "it cannot be read") from error


def _replace(transaction: Transaction, version: AdapterVersion, manifest: VariantManifest) -> None:
    same = (
        (variant.c.name == version.name)
        & (variant.c.number == version.number)
        & (variant.c.kind == manifest.kind)
    )
    old = transaction.execute(sa.select(variant.c.digest).where(same)).scalar()
    if old == manifest.digest:
        return
    values = {
        "digest": manifest.digest,
        "manifest": manifest.canonical().decode(),
        "created_at": now(),
        "created_by": transaction.actor,
        "changed": transaction.revision,
    }
    if old is None:
        place = {"name": version.name, "number": version.number, "kind": manifest.kind}
        transaction.execute(sa.insert(variant).values(**place, **values))
    else:
        transaction.execute(sa.update(variant).where(same).values(values))
        transaction.execute(sa.delete(blob_reference).where(blob_reference.c.owner == old))
    refer_to_blobs(transaction, manifest.digest, manifest.files)
    detail = {"kind": manifest.kind, "digest": manifest.digest}
    transaction.record("merge", str(version.ref), detail)
