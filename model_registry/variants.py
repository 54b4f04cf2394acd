"""Merged variants: a version's adapter added into the weights of its base, as another artifact.

A variant never replaces its version. It says how it was made, because two merges of one adapter are
two different models (docs/merging.md), and it carries the measurements that tell them apart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from model_registry.adapter import AdapterRef, FileEntry
from model_registry.canonical import canonical_json, sha256_digest
from model_registry.fingerprint import BaseFingerprint, Digest

MergeDtype = Literal["fp16", "bf16"]
Onto = Literal["original", "dequantized"]


class VariantManifest(BaseModel):
    """What a merged variant consists of and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    version: Digest
    """Digest of the adapter version that was merged."""
    base: BaseFingerprint
    onto: Onto
    dtype: MergeDtype
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")], FileEntry]
    merged_modules: Annotated[int, Field(ge=1)]
    relative_change: Annotated[float, Field(ge=0)]
    """Norm of the change over norm of the weights, all adapted modules together."""
    made_with: dict[str, str]
    """Versions of the libraries that did the arithmetic."""
    fidelity: dict[str, JsonValue] | None = None
    """How close it is to the adapter on the base it was trained on."""

    @property
    def kind(self) -> str:
        """Its name among the variants of a version."""
        return f"{self.onto}-{self.dtype}"

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @cached_property
    def digest(self) -> str:
        """The identity of the variant."""
        return sha256_digest(self.canonical())


@dataclass(frozen=True)
class MergedVariant:
    """A variant as a registry knows it."""

    name: str
    number: int
    kind: str
    digest: str
    manifest: VariantManifest
    created_at: str
    created_by: str

    @property
    def ref(self) -> AdapterRef:
        """The version it belongs to."""
        return AdapterRef(self.name, number=self.number)

    @property
    def engine_name(self) -> str:
        """Name inside any engine, with its own digest."""
        return f"{self.name}-v{self.number}-{self.kind}-{self.digest.removeprefix('sha256:')[:12]}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.manifest.files.values())

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "name": self.name,
            "version": self.number,
            "kind": self.kind,
            "digest": self.digest,
            "engine_name": self.engine_name,
            "created_at": self.created_at,
            "created_by": self.created_by,
            "size": self.size,
            "manifest": self.manifest.model_dump(mode="json", exclude_none=True),
        }


def preferred_kinds(precision: str) -> tuple[str, ...]:
    """Kinds of variants from the most to the least faithful one.

    An adapter trained on NF4 weights is itself again only on their dequantised copy, and
    sixteen-bit weights keep more of a small change as fp16 than as bf16.
    """
    onto = ("dequantized", "original") if precision == "nf4" else ("original", "dequantized")
    return tuple(f"{place}-{dtype}" for place in onto for dtype in ("fp16", "bf16"))
