"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "adapter",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "alias",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("alias", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_alias"),
    )
    op.create_index("ix_alias_changed", "alias", ["changed"])
    op.create_table(
        "alias_event",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("alias", sa.String(40), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("from_number", sa.Integer(), nullable=True),
        sa.Column("to_number", sa.Integer(), nullable=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.UniqueConstraint("name", "alias", "revision", name="uq_alias_event"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(160), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
    )
    op.create_table(
        "blob_reference",
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint("blob", "owner", name="pk_blob_reference"),
    )
    op.create_index("ix_blob_reference_owner", "blob_reference", ["owner"])
    op.create_table(
        "gate",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("alias", sa.String(40), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_gate"),
    )
    op.create_table(
        "lease",
        sa.Column("replica", sa.String(128), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("replica", "name", "number", name="pk_lease"),
    )
    op.create_table(
        "pin",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("name", "number", "label", name="pk_pin"),
    )
    op.create_table(
        "registry_state",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("revision", sa.Integer(), nullable=False),
    )
    op.create_table(
        "signature",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("digest", "key_id", name="pk_signature"),
    )
    op.create_table(
        "upload",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", "blob", name="pk_upload"),
    )
    op.create_index("ix_upload_blob", "upload", ["blob"])
    op.create_table(
        "variant",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.UniqueConstraint("name", "number", "kind", name="uq_variant"),
    )
    op.create_index("ix_variant_changed", "variant", ["changed"])
    op.create_table(
        "version",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(40), sa.ForeignKey("adapter.name"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("status_at", sa.String(32), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.UniqueConstraint("name", "digest", name="uq_version_digest"),
        sa.UniqueConstraint("name", "number", name="uq_version_number"),
    )
    op.create_index("ix_version_changed", "version", ["changed"])
    op.create_index("ix_version_digest", "version", ["digest"])
    op.execute("INSERT INTO registry_state (id, revision) VALUES (1, 0)")


def downgrade() -> None:
    """Back to nothing."""
    for table in (
        "version",
        "variant",
        "upload",
        "signature",
        "registry_state",
        "pin",
        "lease",
        "gate",
        "blob_reference",
        "audit",
        "alias_event",
        "alias",
        "adapter",
    ):
        op.drop_table(table)
