"""The whole index in memory: what a request asks instead of the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from model_registry.adapter import (
    DEFAULT_ALIAS,
    AdapterManifest,
    AdapterRef,
    AdapterSummary,
    AdapterVersion,
)
from model_registry.errors import (
    AdapterNotFoundError,
    AliasNotFoundError,
    CorruptArtifactError,
    RegistryError,
    VariantNotFoundError,
    VersionDeletedError,
    VersionNotFoundError,
)
from model_registry.variants import MergedVariant, VariantManifest, preferred_kinds

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version whose manifest is still text; it is parsed when somebody first asks for it."""

    name: str
    number: int
    digest: str
    manifest: str
    created_at: str
    created_by: str
    description: str
    status: str


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """A merged variant of a version; the manifest is text."""

    name: str
    number: int
    kind: str
    digest: str
    manifest: str
    created_at: str
    created_by: str


@dataclass(frozen=True)
class RegistrySnapshot:
    """Immutable; answers without any I/O. A newer state is another snapshot."""

    revision: int = 0
    versions: Mapping[str, Mapping[int, StoredVersion]] = field(default_factory=lambda: {})
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: {})
    variants: Mapping[tuple[str, int], Mapping[str, StoredVariant]] = field(
        default_factory=lambda: {}
    )
    descriptions: Mapping[str, str] = field(default_factory=lambda: {})
    _parsed: dict[tuple[str, int], AdapterVersion] = field(
        default_factory=lambda: {}, repr=False, compare=False
    )

    def resolve(self, ref: str | AdapterRef) -> AdapterVersion:
        """The version that a reference means in this snapshot.

        Raises:
            InvalidReferenceError: The text is no reference.
            NotFoundError: One of its kinds.
            VersionDeletedError: It was deleted.
        """
        wanted = AdapterRef.parse(ref) if isinstance(ref, str) else ref
        if wanted.digest is not None:
            return self._by_digest(wanted.digest)
        numbers = self.versions.get(wanted.name)
        if numbers is None:
            raise AdapterNotFoundError(wanted.name)
        number = wanted.number if wanted.number is not None else self._number(wanted, numbers)
        stored = numbers.get(number)
        if stored is None:
            raise VersionNotFoundError(wanted.name, number)
        return self._open(stored)

    def known(self, ref: AdapterRef) -> AdapterVersion | None:
        """As resolve, with None for what is not, or no longer, there."""
        try:
            return self.resolve(ref)
        except RegistryError:
            return None

    def variant(self, version: AdapterVersion) -> MergedVariant:
        """The most faithful merged variant of a version.

        Raises:
            VariantNotFoundError: There is none.
        """
        kinds = self.variants.get((version.name, version.number), {})
        for kind in preferred_kinds(version.manifest.precision):
            if kind in kinds:
                return _open_variant(kinds[kind])
        raise VariantNotFoundError(str(version.ref), "merged")

    @property
    def adapters(self) -> tuple[AdapterSummary, ...]:
        """One line per adapter, by name."""
        return tuple(self._summary(name, self.versions[name]) for name in sorted(self.versions))

    def versions_of(self, name: str) -> tuple[AdapterVersion, ...]:
        """All usable versions of an adapter, newest first."""
        numbers = self.versions.get(name)
        if numbers is None:
            raise AdapterNotFoundError(name)
        ready = [number for number, stored in numbers.items() if stored.status == "ready"]
        return tuple(self._open(numbers[number]) for number in sorted(ready, reverse=True))

    def to_json(self) -> dict[str, Any]:
        """All of it, for the last-known-good file and for `GET /registry/snapshot`."""
        return {
            "format_version": FORMAT_VERSION,
            "revision": self.revision,
            "versions": [
                {key: getattr(item, key) for key in StoredVersion.__slots__}
                for numbers in self.versions.values()
                for item in numbers.values()
            ],
            "variants": [
                {key: getattr(item, key) for key in StoredVariant.__slots__}
                for kinds in self.variants.values()
                for item in kinds.values()
            ],
            "aliases": {name: dict(items) for name, items in self.aliases.items()},
            "descriptions": dict(self.descriptions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The opposite of to_json.

        Raises:
            ValueError: It is not a snapshot of this format.
        """
        if data.get("format_version") != FORMAT_VERSION:
            raise ValueError("a snapshot of another format")
        try:
            versions = [StoredVersion(**item) for item in data["versions"]]
            variants = [StoredVariant(**item) for item in data["variants"]]
            return cls.build(
                int(data["revision"]), versions, variants, data["aliases"], data["descriptions"]
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("a damaged snapshot") from error

    @classmethod
    def build(
        cls,
        revision: int,
        versions: list[StoredVersion],
        variants: list[StoredVariant],
        aliases: Mapping[str, Mapping[str, int]],
        descriptions: Mapping[str, str],
    ) -> Self:
        """From rows."""
        by_name: dict[str, dict[int, StoredVersion]] = {}
        for item in versions:
            by_name.setdefault(item.name, {})[item.number] = item
        by_version: dict[tuple[str, int], dict[str, StoredVariant]] = {}
        for entry in variants:
            by_version.setdefault((entry.name, entry.number), {})[entry.kind] = entry
        return cls(
            revision,
            MappingProxyType(by_name),
            MappingProxyType({name: dict(items) for name, items in aliases.items()}),
            MappingProxyType(by_version),
            MappingProxyType(dict(descriptions)),
        )

    def with_parsed(self, previous: "RegistrySnapshot", changed: set[tuple[str, int]]) -> Self:
        """Keep what another snapshot has parsed already, but for versions that changed since."""
        for key, version in previous._parsed.items():
            if key not in changed:
                self._parsed[key] = version
        return self

    def _number(self, ref: AdapterRef, numbers: Mapping[int, StoredVersion]) -> int:
        number = self.aliases.get(ref.name, {}).get(ref.alias or DEFAULT_ALIAS)
        if number is not None:
            return number
        if ref.alias is not None:
            raise AliasNotFoundError(ref.name, ref.alias)
        latest = max((n for n, stored in numbers.items() if stored.status == "ready"), default=None)
        if latest is None:
            raise AdapterNotFoundError(ref.name)
        return latest

    def _by_digest(self, digest: str) -> AdapterVersion:
        for numbers in self.versions.values():
            for stored in numbers.values():
                if stored.digest == digest and stored.status == "ready":
                    return self._open(stored)
        raise VersionNotFoundError("", digest)

    def _open(self, stored: StoredVersion) -> AdapterVersion:
        key = (stored.name, stored.number)
        known = self._parsed.get(key)
        if known is not None:
            return known
        if stored.status != "ready":
            raise VersionDeletedError(f"{stored.name}/{stored.number}")
        try:
            manifest = AdapterManifest.model_validate_json(stored.manifest)
        except ValueError as error:
            label = f"The manifest of {stored.name}/{stored.number}"
            raise CorruptArtifactError(label, "it cannot be read") from error
        version = AdapterVersion(
            stored.name,
            stored.number,
            stored.digest,
            manifest,
            stored.created_at,
            stored.created_by,
            stored.description,
        )
        self._parsed[key] = version
        return version

    def _summary(self, name: str, numbers: Mapping[int, StoredVersion]) -> AdapterSummary:
        ready = [stored for stored in numbers.values() if stored.status == "ready"]
        return AdapterSummary(
            name=name,
            latest=max((stored.number for stored in ready), default=None),
            versions=len(ready),
            aliases=dict(self.aliases.get(name, {})),
            description=self.descriptions.get(name, ""),
            updated_at=max((stored.created_at for stored in ready), default=""),
        )


def _open_variant(stored: StoredVariant) -> MergedVariant:
    try:
        manifest = VariantManifest.model_validate_json(stored.manifest)
    except ValueError as error:
        label = f"The manifest of {stored.name}/{stored.number} {stored.kind}"
        raise CorruptArtifactError(label, "it cannot be read") from error
    return MergedVariant(
        stored.name,
        stored.number,
        stored.kind,
        stored.digest,
        manifest,
        stored.created_at,
        stored.created_by,
    )
