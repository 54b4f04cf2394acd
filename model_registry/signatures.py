"""Where signatures are kept: a table of the index, and a copy beside the fetched files."""

import json
import os
from pathlib import Path

import sqlalchemy as sa

from model_registry.adapter import AdapterVersion
from model_registry.errors import RegistryUnavailableError
from model_registry.index.database import Database, Transaction, now
from model_registry.index.tables import signature
from model_registry.signing import Signature


def add_signatures(
    transaction: Transaction, version: AdapterVersion, made: tuple[Signature, ...]
) -> None:
    """Keep signatures; one key has one signature over a manifest."""
    for item in made:
        same = (signature.c.digest == version.digest) & (signature.c.key_id == item.key_id)
        if transaction.execute(sa.select(signature.c.key_id).where(same)).first() is not None:
            continue
        values = {"digest": version.digest, "key_id": item.key_id, "signature": item.signature}
        transaction.execute(sa.insert(signature).values(**values, at=now()))
        transaction.record("sign", str(version.ref), {"key_id": item.key_id})


def read_signatures(connection: sa.Connection, digest: str) -> tuple[Signature, ...]:
    """All signatures over a manifest."""
    rows = connection.execute(
        sa.select(signature.c.key_id, signature.c.signature)
        .where(signature.c.digest == digest)
        .order_by(signature.c.key_id)
    )
    return tuple(Signature(row.key_id, row.signature) for row in rows)


def find_signatures(
    database: Database, cache: Path, version: AdapterVersion
) -> tuple[Signature, ...]:
    """From the index; while that is down, from the copy.

    They are checked anyway, so either will do.
    """
    copy = cache / f"{version.digest.removeprefix('sha256:')}.signatures.json"
    try:
        with database.read() as connection:
            found = read_signatures(connection, version.digest)
    except RegistryUnavailableError:
        try:
            items = json.loads(copy.read_text())
            return tuple(Signature(str(key), str(value)) for key, value in items)
        except (OSError, ValueError, TypeError):
            raise RegistryUnavailableError("The index", "signatures cannot be read") from None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = copy.with_name(f".{copy.name}.{os.getpid()}")
        aside.write_text(json.dumps([[item.key_id, item.signature] for item in found]))
        aside.replace(copy)
    except OSError:
        pass  # a read-only cache only costs the copy
    return found
