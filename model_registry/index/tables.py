"""The tables. Times are UTC in ISO 8601, JSON is text: the same in SQLite and PostgreSQL.

`registry_state.revision` counts write transactions. Every one of them raises it first, which also
makes writers take turns, and stamps the rows it touches with it (`changed`), so that a reader can
ask for what is new since the revision it knows.
"""

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_REVISION = "0001"
"""The newest migration in model_registry/migrations/versions."""

metadata = MetaData()

registry_state = Table(
    "registry_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
)

adapter = Table(
    "adapter",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
)

version = Table(
    "version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(40), ForeignKey("adapter.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("status_at", String(32), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed", Integer, nullable=False),
    UniqueConstraint("name", "number", name="uq_version_number"),
    UniqueConstraint("name", "digest", name="uq_version_digest"),
    Index("ix_version_digest", "digest"),
    Index("ix_version_changed", "changed"),
)

variant = Table(
    "variant",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(40), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed", Integer, nullable=False),
    UniqueConstraint("name", "number", "kind", name="uq_variant"),
    Index("ix_variant_changed", "changed"),
)

alias = Table(
    "alias",
    metadata,
    Column("name", String(40), nullable=False),
    Column("alias", String(40), nullable=False),
    # Empty after the alias was removed: the row stays, so that its revision is never used twice.
    Column("number", Integer, nullable=True),
    Column("revision", Integer, nullable=False),
    Column("updated_at", String(32), nullable=False),
    Column("changed", Integer, nullable=False),
    PrimaryKeyConstraint("name", "alias", name="pk_alias"),
    Index("ix_alias_changed", "changed"),
)

alias_event = Table(
    "alias_event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(40), nullable=False),
    Column("alias", String(40), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("from_number", Integer, nullable=True),
    Column("to_number", Integer, nullable=True),
    Column("at", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # `move` or `rollback`: a rollback after a rollback goes further back.
    Column("kind", String(16), nullable=False),
    UniqueConstraint("name", "alias", "revision", name="uq_alias_event"),
)

gate = Table(
    "gate",
    metadata,
    Column("name", String(40), nullable=False),
    Column("alias", String(40), nullable=False),
    Column("rules", Text, nullable=False),
    PrimaryKeyConstraint("name", "alias", name="pk_gate"),
)

pin = Table(
    "pin",
    metadata,
    Column("name", String(40), nullable=False),
    Column("number", Integer, nullable=False),
    Column("label", String(64), nullable=False),
    Column("at", String(32), nullable=False),
    PrimaryKeyConstraint("name", "number", "label", name="pk_pin"),
)

lease = Table(
    "lease",
    metadata,
    Column("replica", String(128), nullable=False),
    Column("name", String(40), nullable=False),
    Column("number", Integer, nullable=False),
    Column("expires_at", String(32), nullable=False),
    PrimaryKeyConstraint("replica", "name", "number", name="pk_lease"),
)

signature = Table(
    "signature",
    metadata,
    Column("digest", String(71), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("at", String(32), nullable=False),
    PrimaryKeyConstraint("digest", "key_id", name="pk_signature"),
)

# Which stored bytes each artifact needs, and which a running publish is about to need.
blob_reference = Table(
    "blob_reference",
    metadata,
    Column("blob", String(64), nullable=False),
    Column("owner", String(71), nullable=False),
    PrimaryKeyConstraint("blob", "owner", name="pk_blob_reference"),
    Index("ix_blob_reference_owner", "owner"),
)

upload = Table(
    "upload",
    metadata,
    Column("id", String(36), nullable=False),
    Column("blob", String(64), nullable=False),
    Column("expires_at", String(32), nullable=False),
    PrimaryKeyConstraint("id", "blob", name="pk_upload"),
    Index("ix_upload_blob", "blob"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(40), nullable=False),
    Column("subject", String(160), nullable=False),
    Column("detail", Text, nullable=False),
    # sha256 over this row and the digest of the row before: an edited past does not add up.
    Column("digest", String(71), nullable=False),
)
