"""`ModelRegistry`: every verb of the registry, over an index, a store and a cache."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from model_registry.adapter import AdapterRef, AdapterSummary, AdapterVersion, Precision, check_name
from model_registry.base_modules import Shapes, read_base_shapes
from model_registry.errors import CorruptArtifactError, InvalidAdapterError
from model_registry.fingerprint import BaseFingerprint
from model_registry.snapshot import RegistrySnapshot
from model_registry.upkeep import UpkeepVerbs
from model_registry.variant_verbs import VariantVerbs

if TYPE_CHECKING:
    from model_registry.aliases import AliasEvent, AliasState


class ModelRegistry(UpkeepVerbs, VariantVerbs):
    """A registry behind one URL for a plain directory, or two: index and store."""

    @classmethod
    def open(
        cls,
        url: str | Path,
        store_url: str | None = None,
        *,
        cache_dir: Path | None = None,
        actor: str | None = None,
        trusted_keys: Path | None = None,
    ) -> Self:
        """Open a registry.

        Args:
            url: A directory (a path or `file:///path`), which is created when it is absent and
                needs nothing else; or a database, `postgresql://…`, migrated beforehand.
            store_url: Where bytes are kept when the index is a database: `s3://bucket/prefix`, or a
                directory that all replicas mount.
            cache_dir: Where fetched files go.
            actor: Who writes, for history and audit log; the user's name if absent.
            trusted_keys: A PEM file or a folder of them: only versions signed by one of these keys
                are fetched, verified and imported.

        Raises:
            RegistryUnavailableError: It cannot be reached, created or read.
            SchemaError: The database has to be migrated first.
        """
        # Imported here: SQLAlchemy alone takes most of a second, and `--help` needs none of it.
        from model_registry.locations import open_parts

        database, blobs, cache = open_parts(str(url), store_url, cache_dir)
        trusted = None
        if trusted_keys is not None:
            from model_registry.signing import TrustedKeys

            trusted = TrustedKeys.load(trusted_keys)
        who = actor or os.environ.get("USER") or f"uid{os.getuid()}"
        return cls(database, blobs, cache, actor=who, trusted=trusted)

    def close(self) -> None:
        """Give connections back."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Versions

    def publish(
        self,
        name: str,
        directory: str | Path,
        *,
        prompt_format: str,
        base: BaseFingerprint,
        precision: Precision,
        quantization: Mapping[str, Any] | None = None,
        languages: tuple[str, ...] = (),
        training: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        data_statement: str | None = None,
        description: str = "",
        created_by: str = "",
        base_directory: str | Path | None = None,
        base_shapes: Shapes | None = None,
        probe_logit_change: float | None = None,
        revive: bool = False,
    ) -> AdapterVersion:
        """Make a version of the adapter files in a directory (PEFT's layout).

        With `base_directory` (or the shapes themselves) every tensor is checked against the modules
        of the base, from its headers alone. Equal content again returns the version there is.

        Raises:
            InvalidAdapterError: The files are refused; `reason` says why.
            VersionDeletedError: This content was deleted; `revive=True` brings it back.
        """
        facts = {
            "base": base.model_dump(),
            "precision": precision,
            "quantization": quantization,
            "prompt_format": prompt_format,
            "languages": languages,
            "training": training,
            "evaluation": evaluation,
            "data_statement": data_statement,
            "probe_logit_change": probe_logit_change,
        }
        shapes = read_base_shapes(Path(base_directory)) if base_directory else base_shapes
        return self._publish(
            check_name(name), Path(directory), facts, shapes, description, created_by, revive=revive
        )

    def import_directory(
        self,
        directory: str | Path,
        *,
        name: str | None = None,
        base_directory: str | Path | None = None,
        revive: bool = False,
    ) -> AdapterVersion:
        """Take over a version that `export_directory` wrote, with the same digest.

        Its number is kept if it is free here. Its aliases are set where they are not set yet; one
        that points somewhere already is never moved by an import.

        Raises:
            InvalidAdapterError: The files are not what manifest.json says (`wrong_digest`), or
            refused.
        """
        from model_registry import portable
        from model_registry.signatures import add_signatures
        from model_registry.signing import Signature

        source = Path(directory)
        manifest, record = portable.read_record(source)
        signatures = tuple(Signature(item.key_id, item.signature) for item in record.signatures)
        if self.trusted is not None:
            self.trusted.check(str(source), manifest.canonical(), signatures)
        shapes = read_base_shapes(Path(base_directory)) if base_directory else None
        version = self._publish(
            check_name(name or record.name),
            source,
            portable.manifest_facts(manifest),
            shapes,
            record.description,
            "",
            number=record.number,
            expected_digest=record.digest,
            revive=revive,
        )
        if signatures:
            with self.database.write(self.actor) as transaction:
                add_signatures(transaction, version, signatures)
        for alias in record.aliases:
            self._set_alias_if_unset(version, alias)
        return version

    def export_directory(self, ref: str | AdapterRef, destination: str | Path) -> AdapterVersion:
        """Write a version with its manifest and record into a new or empty directory."""
        from model_registry import portable
        from model_registry.staging import copy_hashed

        version = self.resolve(ref)
        source, target = self.fetch(version), Path(destination)
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise InvalidAdapterError("not_empty", f"{target} is not empty")
        for file_name, entry in version.manifest.files.items():
            copy_hashed(source / file_name, target / file_name, limit=entry.size)
        signatures = tuple(
            portable.PortableSignature(key_id=item.key_id, signature=item.signature)
            for item in self.signatures(version)
        )
        portable.write_record(target, version, self._aliases_at(version), signatures)
        return version

    def list_adapters(
        self, *, limit: int | None = None, after: str = "", prefix: str = ""
    ) -> tuple[AdapterSummary, ...]:
        """One line per adapter, by name; page through many with `limit` and `after`."""
        from model_registry.index import queries

        with self.database.read() as connection:
            return queries.list_summaries(connection, limit=limit, after=after, prefix=prefix)

    def list_versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """All versions of an adapter, newest first, deleted ones too (see their `status`)."""
        from model_registry.index import queries

        with self.database.read() as connection:
            return queries.list_versions(connection, name)

    def aliases(self, name: str) -> dict[str, int]:
        """Alias to version number."""
        from model_registry.index import queries

        with self.database.read() as connection:
            return queries.aliases_of(connection, name)

    # Aliases

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        expected: int | None = None,
        expected_revision: int | None = None,
        reason: str = "",
        actor: str = "",
    ) -> "AliasState":
        """Point an alias at a version; with an expectation, only if it holds (compare-and-swap).

        `expected` is the number the alias points at now, 0 for none. `expected_revision` counts its
        moves and also notices one that came back.

        Raises:
            AliasConflictError: The expectation does not hold; nothing was changed.
        """
        from model_registry.aliases import Expected, move_alias

        wanted = Expected(expected, expected_revision)
        with self.database.write(actor or self.actor) as transaction:
            return move_alias(transaction, name, alias, number, expected=wanted, reason=reason)

    def remove_alias(
        self,
        name: str,
        alias: str,
        *,
        expected: int | None = None,
        expected_revision: int | None = None,
        reason: str = "",
        actor: str = "",
    ) -> "AliasState":
        """Unset an alias; its history stays."""
        from model_registry.aliases import Expected, move_alias

        wanted = Expected(expected, expected_revision)
        with self.database.write(actor or self.actor) as transaction:
            return move_alias(transaction, name, alias, None, expected=wanted, reason=reason)

    def rollback_alias(
        self, name: str, alias: str, *, reason: str = "", actor: str = ""
    ) -> "AliasState":
        """Back to the version before; again goes one further back."""
        from model_registry.aliases import rollback_alias

        with self.database.write(actor or self.actor) as transaction:
            return rollback_alias(transaction, name, alias, reason)

    def alias_state(self, name: str, alias: str) -> "AliasState":
        """Where an alias points, with the revision that a compare-and-swap needs."""
        from model_registry.aliases import read_alias

        with self.database.read() as connection:
            return read_alias(connection, name, alias)

    def alias_history(self, name: str, alias: str) -> "tuple[AliasEvent, ...]":
        """All moves of an alias, newest first."""
        from model_registry.aliases import alias_history

        with self.database.read() as connection:
            return alias_history(connection, name, alias)

    # Bytes

    def fetch(self, version: AdapterVersion) -> Path:
        """A local directory with the files of a version in PEFT's layout, every byte checked.

        Raises:
            CorruptArtifactError: The stored bytes are not those of the manifest.
            SignatureError: Keys are trusted, and none of them has signed the version.
        """
        from model_registry.fetch import fetch_files

        self.check_signature(version)
        return fetch_files(
            self.blobs, self.cache, version.digest, str(version.ref), version.manifest.files
        )

    def verify(self, ref: str | AdapterRef) -> AdapterVersion:
        """Read everything a version consists of from index and store, and compare it with its
        digest.

        Raises:
            CorruptArtifactError: With what is wrong.
            SignatureError: Keys are trusted, and none of them has signed the version.
        """
        version = self.resolve(ref)
        label = str(version.ref)
        if version.manifest.digest != version.digest:
            raise CorruptArtifactError(label, "its manifest in the index has another digest")
        stored = self.blobs.read_manifest(version.digest)
        if stored != version.manifest.canonical():
            raise CorruptArtifactError(label, "index and store hold different manifests")
        for name, entry in version.manifest.files.items():
            self.blobs.check(f"{name} of {label}", entry)
        for variant in self.variants(version.ref):
            for name, entry in variant.manifest.files.items():
                self.blobs.check(f"{name} of {label} {variant.kind}", entry)
        self.check_signature(version)
        return version

    def snapshot(self, previous: RegistrySnapshot | None = None) -> RegistrySnapshot:
        """The whole index in memory; given the previous one, only what changed is read."""
        from model_registry.index.snapshots import read_snapshot

        with self.database.read() as connection:
            return read_snapshot(connection, previous)

    def _publish(
        self,
        name: str,
        directory: Path,
        facts: Mapping[str, object],
        shapes: Shapes | None,
        description: str,
        actor: str,
        *,
        number: int | None = None,
        expected_digest: str | None = None,
        revive: bool = False,
    ) -> AdapterVersion:
        from model_registry import portable, publish
        from model_registry.staging import staging_directory

        ignored = portable.IGNORED_FILES
        if expected_digest is not None:
            ignored += (portable.MANIFEST_FILE, portable.RECORD_FILE)
        with staging_directory(self.cache / "staging") as staging:
            staged = publish.stage_adapter(
                directory, staging, facts, shapes, ignored, rewrite_config=expected_digest is None
            )
            if expected_digest not in (None, staged.manifest.digest):
                raise InvalidAdapterError(
                    "wrong_digest", f"{directory}: the files are not those of manifest.json"
                )
            return publish.commit(
                self.database,
                self.blobs,
                staged,
                name=name,
                actor=actor or self.actor,
                description=description,
                number=number,
                revive=revive,
            )

    def _aliases_at(self, version: AdapterVersion) -> tuple[str, ...]:
        held = self.aliases(version.name).items()
        return tuple(sorted(alias for alias, number in held if number == version.number))

    def _set_alias_if_unset(self, version: AdapterVersion, alias: str) -> None:
        if alias in self.aliases(version.name):
            return
        self.set_alias(version.name, alias, version.number, reason="imported with the version")
