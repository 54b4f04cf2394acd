"""How an adapter is named, what is recorded about a version, and what a version is.

A version's digest is the sha256 of its canonical manifest, and the manifest holds the sha256 of
every file. So the digest covers all of it, and equal content has an equal digest in every registry.
When and by whom it was published is known per registry and is no part of the digest.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from model_registry.canonical import canonical_json, sha256_digest
from model_registry.errors import (
    BaseMismatchError,
    InvalidReferenceError,
    PrecisionMismatchError,
)
from model_registry.fingerprint import BaseFingerprint

DEFAULT_ALIAS = "production"
"""What the plain name of an adapter means, when it is set."""

# A DNS label: safe in paths, metrics, and names of Kubernetes objects made from it.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Precision = Literal["bf16", "fp16", "fp32", "nf4"]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def check_name(name: str, what: str = "name") -> str:
    """The name itself, or InvalidReferenceError."""
    if not _NAME.fullmatch(name):
        raise InvalidReferenceError(
            name, f"a {what} is 1-40 lower-case letters, digits and inner hyphens"
        )
    return name


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """`name`, `name/3` or `name@alias`, all also after `models:/`; or a bare `sha256:…`."""

    name: str
    number: int | None = None
    alias: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read any accepted spelling.

        Raises:
            InvalidReferenceError: The text is none of them.
        """
        body = text.removeprefix("models:/")
        if _DIGEST.fullmatch(body):
            return cls("", digest=body)
        if "@" in body:
            name, alias = body.split("@", 1)
            return cls(_part(text, name, "name"), alias=_part(text, alias, "alias"))
        if "/" in body:
            name, number = body.split("/", 1)
            if not _NUMBER.fullmatch(number):
                raise InvalidReferenceError(text, "after the slash comes a number from 1")
            return cls(_part(text, name, "name"), number=int(number))
        return cls(_part(text, body, "name"))

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        if self.number is not None:
            return f"{self.name}/{self.number}"
        return f"{self.name}@{self.alias}" if self.alias is not None else self.name


def _part(text: str, part: str, what: str) -> str:
    if not _NAME.fullmatch(part):
        raise InvalidReferenceError(
            text, f"a {what} is 1-40 lower-case letters, digits and inner hyphens"
        )
    return part


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(_Record):
    """One file of an artifact."""

    sha256: Hex
    size: Annotated[int, Field(ge=0)]


class LoraSettings(_Record):
    """The part of PEFT's configuration that decides what the adapter computes."""

    r: Annotated[int, Field(ge=1, le=4096)]
    lora_alpha: Annotated[float, Field(gt=0)]
    use_rslora: bool = False
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: tuple[str, ...] = ()
    """Modules stored whole instead of as a low-rank change."""
    modules: Annotated[int, Field(ge=0)]
    """How many modules of the base carry a low-rank change."""
    max_rank: Annotated[int, Field(ge=0)]
    """Highest rank among them: what a slot or a remote engine has to hold."""

    @property
    def scale(self) -> float:
        """The factor on B·A where no pattern says otherwise."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class AdapterManifest(_Record):
    """Everything that makes a version what it is.

    Its canonical JSON is what gets hashed and signed.
    """

    format_version: Literal[1] = 1
    files: dict[str, FileEntry]
    adapter: LoraSettings
    base: BaseFingerprint
    precision: Precision
    """Precision of the base's weights while the adapter was trained."""
    quantization: dict[str, JsonValue] | None = None
    """How the base was quantised in training; without it `nf4` cannot be reproduced."""
    prompt_format: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    languages: tuple[str, ...] = ()
    training: dict[str, JsonValue] | None = None
    evaluation: dict[str, JsonValue] | None = None
    data_statement: str | None = None
    probe_logit_change: Annotated[float, Field(gt=0)] | None = None
    """Largest change of a logit on the probe prompts when the adapter is switched on."""

    def canonical(self) -> bytes:
        """The bytes that are stored, hashed and signed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @cached_property
    def digest(self) -> str:
        """The identity of a version."""
        return sha256_digest(self.canonical())


@dataclass(frozen=True)
class AdapterVersion:
    """One immutable version as a registry knows it."""

    name: str
    number: int
    digest: str
    manifest: AdapterManifest
    created_at: str = ""
    created_by: str = ""
    description: str = ""
    status: Literal["ready", "deleted", "purged"] = "ready"

    @property
    def ref(self) -> AdapterRef:
        """`name/number`."""
        return AdapterRef(self.name, number=self.number)

    @property
    def engine_name(self) -> str:
        """Name inside any engine; with the digest, so that no cache can mix up two versions."""
        return f"{self.name}-v{self.number}-{self.digest.removeprefix('sha256:')[:12]}"

    def check_base(self, base: BaseFingerprint, precision: str | None = None) -> None:
        """Refuse to go on top of a base (and load precision) it was not made for.

        `precision` is that of the weights as loaded; `dequantized` are NF4 weights turned back
        into 16 bits, which are the weights that an NF4 adapter has seen.

        Raises:
            BaseMismatchError: Another base model.
            PrecisionMismatchError: The same base in a precision with other weights.
        """
        parts = self.manifest.base.differences(base)
        if parts:
            raise BaseMismatchError(str(self.ref), parts)
        if precision is not None and not precisions_agree(self.manifest.precision, precision):
            raise PrecisionMismatchError(str(self.ref), self.manifest.precision, precision)

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "name": self.name,
            "version": self.number,
            "digest": self.digest,
            "engine_name": self.engine_name,
            "status": self.status,
            "description": self.description,
            "created_at": self.created_at,
            "created_by": self.created_by,
            "manifest": self.manifest.model_dump(mode="json", exclude_none=True),
        }


@dataclass(frozen=True)
class AdapterSummary:
    """One line of the list of adapters."""

    name: str
    latest: int | None
    """Highest number that is not deleted."""
    versions: int
    aliases: dict[str, int]
    description: str = ""
    updated_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json` and HTTP."""
        return {
            "name": self.name,
            "latest": self.latest,
            "versions": self.versions,
            "aliases": self.aliases,
            "description": self.description,
            "updated_at": self.updated_at,
        }


def precisions_agree(trained: str, loaded: str) -> bool:
    """Whether an adapter trained on one precision sees the weights it knows on the other.

    The 16- and 32-bit forms of one base differ by rounding; NF4 weights differ from all of them by
    nine per cent, and equal only their own dequantised copy (docs/merging.md has the figures).
    """
    return (trained == "nf4") == (loaded in ("nf4", "dequantized"))
