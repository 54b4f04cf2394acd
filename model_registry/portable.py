"""A version as a directory of plain files, and back with the same digest.

    adapter_model.safetensors  adapter_config.json  manifest.json  record.json

`manifest.json` holds the canonical bytes; `record.json` the name, number, aliases and signatures.
This is how an adapter lies in a repository, in a bundle for a closed network, and on the Hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_registry.adapter import AdapterManifest, AdapterVersion, check_name
from model_registry.canonical import sha256_digest
from model_registry.errors import InvalidAdapterError

MANIFEST_FILE = "manifest.json"
RECORD_FILE = "record.json"
IGNORED_FILES = ("README.md", ".gitattributes")
"""Found beside adapters and of no consequence."""


class PortableSignature(BaseModel):
    """One signature over the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class PortableRecord(BaseModel):
    """What a registry knows about a version besides its manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    number: Annotated[int, Field(ge=1)] | None = None
    digest: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    signatures: tuple[PortableSignature, ...] = ()


def write_record(
    directory: Path,
    version: AdapterVersion,
    aliases: tuple[str, ...],
    signatures: tuple[PortableSignature, ...] = (),
) -> None:
    """Write manifest.json and record.json beside the files of a version."""
    (directory / MANIFEST_FILE).write_bytes(version.manifest.canonical())
    record = PortableRecord(
        name=version.name,
        number=version.number,
        digest=version.digest,
        description=version.description,
        aliases=aliases,
        signatures=signatures,
    )
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False, sort_keys=True)
    (directory / RECORD_FILE).write_text(text + "\n")


def read_record(directory: Path) -> tuple[AdapterManifest, PortableRecord]:
    """Both files, checked against each other.

    Raises:
        InvalidAdapterError: `missing_file`, `bad_record`, `wrong_digest`.
    """
    raw = _read(directory / MANIFEST_FILE)
    try:
        manifest = AdapterManifest.model_validate_json(raw)
        record = PortableRecord.model_validate_json(_read(directory / RECORD_FILE))
        for label in (record.name, *record.aliases):
            check_name(label)
    except ValueError as error:
        detail = " ".join(str(error).split())[:300]
        raise InvalidAdapterError("bad_record", f"{directory}: {detail}") from error
    if sha256_digest(raw) != record.digest or manifest.digest != record.digest:
        raise InvalidAdapterError(
            "wrong_digest", f"{directory}: manifest.json is not the one that record.json names"
        )
    return manifest, record


def manifest_facts(manifest: AdapterManifest) -> Mapping[str, Any]:
    """The fields that are not computed from the files."""
    return manifest.model_dump(mode="json", exclude={"files", "adapter"}, exclude_none=True)


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise InvalidAdapterError("missing_file", f"{path.parent} holds no {path.name}")
    if path.stat().st_size > 8 * 2**20:
        raise InvalidAdapterError("too_large", f"{path.name} is larger than 8 MiB")
    return path.read_bytes()
