"""What every group of the registry's verbs works on."""

from pathlib import Path
from typing import TYPE_CHECKING

from model_registry.adapter import AdapterRef, AdapterVersion

if TYPE_CHECKING:
    from model_registry.blobs import BlobStore
    from model_registry.index.database import Database
    from model_registry.signing import TrustedKeys


class RegistryParts:
    """An index, a store, a cache of fetched files, and who writes."""

    def __init__(
        self,
        database: "Database",
        blobs: "BlobStore",
        cache: Path,
        *,
        actor: str,
        trusted: "TrustedKeys | None" = None,
    ) -> None:
        self.database = database
        self.blobs = blobs
        self.cache = cache
        self.actor = actor
        self.trusted = trusted

    def resolve(self, ref: str | AdapterRef) -> AdapterVersion:
        """The version that `name`, `name/3`, `name@alias`, `models:/…` or `sha256:…` means now.

        Raises:
            InvalidReferenceError: The text is no reference.
            NotFoundError: One of its kinds: no such adapter, version or alias.
            VersionDeletedError: It was deleted.
        """
        from model_registry.index import queries

        wanted = AdapterRef.parse(ref) if isinstance(ref, str) else ref
        with self.database.read() as connection:
            return queries.find_version(connection, wanted)
