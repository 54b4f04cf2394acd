"""The registry's verbs for operators: gates, deletion, pins, leases, audit, signatures."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterRef, AdapterVersion
from model_registry.parts import RegistryParts

if TYPE_CHECKING:
    from model_registry.audit import AuditEntry
    from model_registry.garbage import GarbageReport
    from model_registry.gates import GateRules
    from model_registry.holding import Lease
    from model_registry.signing import Signature


class UpkeepVerbs(RegistryParts):
    """Mixed into ModelRegistry."""

    def set_gate(
        self, name: str, alias: str, rules: "Mapping[str, Any] | None", *, actor: str = ""
    ) -> None:
        """Demand something of every version that an alias is to point at; None lifts it.

        The name `*` is the gate of every adapter that has none of its own for this alias. A
        rollback passes every gate: what was good enough before has to be reachable at night.
        """
        from model_registry.gates import parse_rules, write_gate

        parsed = None if rules is None else parse_rules(rules, f"{name}@{alias}")
        with self.database.write(actor or self.actor) as transaction:
            write_gate(transaction, name, alias, parsed)

    def gate(self, name: str, alias: str) -> "GateRules | None":
        """What an alias demands, if anything."""
        from model_registry.gates import read_gate

        with self.database.read() as connection:
            return read_gate(connection, name, alias)

    def delete(self, ref: str | AdapterRef, *, reason: str = "", actor: str = "") -> AdapterVersion:
        """Soft delete: the version resolves no more; its bytes go with `gc` after the grace.

        Raises:
            VersionInUseError: An alias, a pin or a running replica holds it.
        """
        from model_registry.garbage import delete_version

        with self.database.write(actor or self.actor) as transaction:
            return delete_version(transaction, _parsed(ref), reason)

    def restore(self, ref: str | AdapterRef, *, actor: str = "") -> AdapterVersion:
        """Undo a soft delete."""
        from model_registry.garbage import restore_version

        with self.database.write(actor or self.actor) as transaction:
            return restore_version(transaction, _parsed(ref))

    def collect_garbage(
        self, *, grace_s: float = 24 * 3600, keep_last: int | None = None, dry_run: bool = False
    ) -> "GarbageReport":
        """Remove what nothing needs and what has been so for longer than the grace.

        With `keep_last`, versions older than the last so many of each adapter are soft-deleted
        first, unless an alias, a pin or a replica holds them.
        """
        from model_registry.garbage import collect

        return collect(
            self.database,
            self.blobs,
            self.cache,
            actor=self.actor,
            grace_s=grace_s,
            keep_last=keep_last,
            dry_run=dry_run,
        )

    def pin(self, ref: str | AdapterRef, label: str) -> None:
        """Keep a version from deletion; the label says why."""
        from model_registry.holding import set_pin

        version = self.resolve(ref)
        with self.database.write(self.actor) as transaction:
            set_pin(transaction, version, label[:64])

    def unpin(self, ref: str | AdapterRef, label: str) -> None:
        """The opposite of pin."""
        from model_registry.holding import remove_pin

        version = self.resolve(ref)
        with self.database.write(self.actor) as transaction:
            remove_pin(transaction, version, label[:64])

    def renew_leases(
        self, replica: str, held: "Iterable[AdapterVersion]", *, ttl_s: float = 300
    ) -> None:
        """Say what a running replica has loaded; to be repeated well before `ttl_s` is over."""
        from model_registry.holding import renew_leases

        versions = [(version.name, version.number) for version in held]
        with self.database.write(replica, visible=False) as transaction:
            renew_leases(transaction, replica, versions, ttl_s)

    def leases(self, name: str | None = None) -> "tuple[Lease, ...]":
        """Which replicas have which versions loaded."""
        from model_registry.holding import active_leases

        with self.database.read() as connection:
            return active_leases(connection, name)

    def audit(
        self, *, limit: int = 100, before: int | None = None, subject: str = ""
    ) -> "tuple[AuditEntry, ...]":
        """What was done by whom, newest first; `subject` is a prefix such as `name/3`."""
        from model_registry.audit import read_audit

        with self.database.read() as connection:
            return read_audit(connection, limit=limit, before=before, subject=subject)

    def verify_audit(self) -> int:
        """Check that no line of the audit log was changed or removed; returns their number.

        Raises:
            CorruptArtifactError: One was.
        """
        from model_registry.audit import verify_audit

        with self.database.read() as connection:
            return verify_audit(connection)

    def sign(self, ref: str | AdapterRef, private_key: str | Path) -> "Signature":
        """Sign a version's manifest with an Ed25519 key in PEM form."""
        from model_registry.signatures import add_signatures
        from model_registry.signing import sign_manifest

        version = self.resolve(ref)
        made = sign_manifest(version.manifest.canonical(), Path(private_key))
        with self.database.write(self.actor) as transaction:
            add_signatures(transaction, version, (made,))
        return made

    def signatures(self, version: AdapterVersion) -> "tuple[Signature, ...]":
        """All signatures over a version, trusted or not."""
        from model_registry.signatures import read_signatures

        with self.database.read() as connection:
            return read_signatures(connection, version.digest)

    def check_signature(self, version: AdapterVersion) -> str | None:
        """The id of the trusted key behind a version; None where no keys were given to trust.

        Raises:
            SignatureError: Keys are trusted, and none of them has signed it.
        """
        if self.trusted is None:
            return None
        from model_registry.signatures import find_signatures

        found = find_signatures(self.database, self.cache, version)
        return self.trusted.check(str(version.ref), version.manifest.canonical(), found)


def _parsed(ref: str | AdapterRef) -> AdapterRef:
    return AdapterRef.parse(ref) if isinstance(ref, str) else ref
