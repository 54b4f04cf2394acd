"""What the registry says and does over HTTP, without HTTP: JSON in, JSON and an entity tag out.

A server adds routes, the admin scope for what writes, and its table from errors to statuses.
Weights never pass through here: clients put and get bytes at the store, or with the command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterRef
from model_registry.diff import differences
from model_registry.errors import AliasConflictError, InvalidReferenceError
from model_registry.snapshot import RegistrySnapshot

if TYPE_CHECKING:
    from model_registry.aliases import AliasState
    from model_registry.registry import ModelRegistry


@dataclass(frozen=True)
class Reply:
    """A body and its entity tag; no body when the caller has it already (304)."""

    body: Any
    etag: str | None = None

    @property
    def not_modified(self) -> bool:
        """Whether the tag that the caller sent is the present one."""
        return self.body is None


class RegistryApi:
    """Every operation raises the registry's own errors."""

    def __init__(self, registry: "ModelRegistry") -> None:
        self._registry = registry
        self._snapshot: RegistrySnapshot | None = None

    def snapshot(self, if_none_match: str | None = None) -> Reply:
        """The whole index, for readers without a connection to the database."""
        snapshot = self._registry.snapshot(self._snapshot)
        self._snapshot = snapshot
        etag = f'"{snapshot.revision}"'
        return Reply(None if if_none_match == etag else snapshot.to_json(), etag)

    def adapters(self, *, limit: int = 100, after: str = "", prefix: str = "") -> Reply:
        """A page of adapters; `next` is the `after` of the following page."""
        limit = max(1, min(limit, 1000))
        page = self._registry.list_adapters(limit=limit, after=after, prefix=prefix)
        following = page[-1].name if len(page) == limit else None
        return Reply({"adapters": [item.to_json() for item in page], "next": following})

    def adapter(self, name: str) -> Reply:
        """An adapter with its versions, aliases, and who serves what."""
        versions = self._registry.list_versions(name)
        states = [self._registry.alias_state(name, a) for a in self._registry.aliases(name)]
        return Reply(
            {
                "name": name,
                "versions": [version.to_json() for version in versions],
                "aliases": [state.to_json() for state in states],
                "leases": [lease.to_json() for lease in self._registry.leases(name)],
            }
        )

    def version(self, ref: str, if_none_match: str | None = None) -> Reply:
        """One version with its merged variants and signatures."""
        version = self._registry.resolve(ref)
        variants = self._registry.variants(version.ref)
        signatures = self._registry.signatures(version)
        # The digest covers the version itself; variants and signatures come later.
        parts = [version.digest, *(v.digest for v in variants), *(s.key_id for s in signatures)]
        etag = f'"{"-".join(part.removeprefix("sha256:")[:16] for part in parts)}"'
        if if_none_match == etag:
            return Reply(None, etag)
        body = {
            **version.to_json(),
            "variants": [variant.to_json() for variant in variants],
            "signatures": [item.key_id for item in signatures],
        }
        return Reply(body, etag)

    def diff(self, name: str, one: int, other: int) -> Reply:
        """In what two versions of an adapter differ: field to both values."""
        pair = [self._registry.resolve(AdapterRef(name, number=n)) for n in (one, other)]
        return Reply(differences(*pair))

    def alias(self, name: str, alias: str) -> Reply:
        """Where an alias points, what it demands, and all its moves."""
        state = self._registry.alias_state(name, alias)
        history = self._registry.alias_history(name, alias)
        gate = self._registry.gate(name, alias)
        body = {
            **state.to_json(),
            "gate": None if gate is None else gate.model_dump(mode="json"),
            "history": [event.to_json() for event in history],
        }
        return Reply(body, f'"{state.revision}"')

    def move_alias(
        self, name: str, alias: str, body: Mapping[str, Any], *, if_match: str | None, actor: str
    ) -> Reply:
        """`{"version": 3, "reason": "…"}`; the tag that the caller saw has to be sent along.

        Raises:
            AliasConflictError: It moved since, or no tag was sent.
            GateRefusedError: The version does not meet what the alias demands.
        """
        number, reason = body.get("version"), body.get("reason", "")
        if type(number) is not int or number < 1 or not isinstance(reason, str):
            raise InvalidReferenceError(
                f"{name}/{number}", "version is a number from 1, and reason a text"
            )
        revision = self._seen(name, alias, if_match)
        state = self._registry.set_alias(
            name, alias, number, expected_revision=revision, reason=reason, actor=actor
        )
        return _moved(state)

    def remove_alias(self, name: str, alias: str, *, if_match: str | None, actor: str) -> Reply:
        """Unset an alias."""
        revision = self._seen(name, alias, if_match)
        return _moved(
            self._registry.remove_alias(name, alias, expected_revision=revision, actor=actor)
        )

    def roll_back(self, name: str, alias: str, *, reason: str, actor: str) -> Reply:
        """Back to the version before, whatever it is: the one button for an emergency."""
        return _moved(self._registry.rollback_alias(name, alias, reason=reason, actor=actor))

    def delete(self, name: str, number: int, *, reason: str, actor: str) -> Reply:
        """Soft-delete a version that nothing holds."""
        ref = AdapterRef(name, number=number)
        return Reply(self._registry.delete(ref, reason=reason, actor=actor).to_json())

    def restore(self, name: str, number: int, *, actor: str) -> Reply:
        """Undo a soft delete."""
        return Reply(self._registry.restore(AdapterRef(name, number=number), actor=actor).to_json())

    def audit(self, *, limit: int = 100, before: int | None = None, subject: str = "") -> Reply:
        """What was done by whom, newest first."""
        entries = self._registry.audit(
            limit=max(1, min(limit, 1000)), before=before, subject=subject
        )
        return Reply([entry.to_json() for entry in entries])

    def _seen(self, name: str, alias: str, if_match: str | None) -> int:
        text = (if_match or "").strip('"')
        if text.isdecimal():
            return int(text)
        found = self._registry.alias_state(name, alias).revision
        raise AliasConflictError(name, alias, "a revision in If-Match", f"revision {found}")


def _moved(state: "AliasState") -> Reply:
    return Reply(state.to_json(), f'"{state.revision}"')
