"""What makes two base models the same one: architecture, weights, tokenizer and chat template.

An adapter fits the base it was trained on and no other. The digests depend on the content, not on
how it is cut into files or in which order, so a re-saved copy is the same base.
"""

import hashlib
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from model_registry.bases.errors import IncompleteBaseModelError
from model_registry.bases.files import chat_template, read_json, weight_files
from model_registry.fingerprint import BaseFingerprint

_CHUNK = 1 << 22
_Tensor = tuple[Path, str, str, list[int], tuple[int, int]]
"""File, name, dtype, shape, and span (offset, size) in the file."""


class _Record(BaseModel):
    """A fingerprint and the state of the files it was computed from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, tuple[int, int]]
    """Size and time of change (ns) by file name."""
    fingerprint: BaseFingerprint


def fingerprint_of(directory: Path, record: Path | None = None) -> BaseFingerprint:
    """The fingerprint of a complete model directory.

    Reading gigabytes at each start would be slow, so the result is kept in `record` and believed
    as long as no file of the model has changed in size or time.
    """
    state = _state(directory)
    if record is not None and (known := _read(record)) is not None and known.files == state:
        return known.fingerprint
    fingerprint = compute_fingerprint(directory)
    if record is not None:
        _write(record, _Record(files=state, fingerprint=fingerprint))
    return fingerprint


def compute_fingerprint(directory: Path) -> BaseFingerprint:
    """The fingerprint from the bytes of the model, whatever was recorded before."""
    model_type = read_json(directory, "config.json", "").get("model_type")
    tensors = [entry for file in weight_files(directory) for entry in _tensors(file)]
    tensors.sort(key=lambda entry: entry[1])
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter
        digests = list(pool.map(_span_sha256, tensors))
    return BaseFingerprint(
        arch=_sha256_json([model_type, [[name, shape] for _, name, _, shape, _ in tensors]]),
        weights=_sha256_json(
            [
                [name, dtype, shape, digest]
                for (_, name, dtype, shape, _), digest in zip(tensors, digests, strict=True)
            ]
        ),
        tokenizer=_tokenizer_sha256(directory),
    )


def _tensors(file: Path) -> list[_Tensor]:
    """What the header of the file says."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise IncompleteBaseModelError(file.parent, f"whole {file.name}", "fetch it again")
        length = struct.unpack("<Q", prefix)[0]
        total = file.stat().st_size
        try:
            header: dict[str, Any] = json.loads(stream.read(length) if length < total else b"")
            header.pop("__metadata__", None)
            found = [
                (
                    file,
                    name,
                    str(entry["dtype"]),
                    list(entry["shape"]),
                    (8 + length + begin, end - begin),
                )
                for name, entry in header.items()
                for begin, end in [entry["data_offsets"]]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise IncompleteBaseModelError(
                file.parent, f"readable {file.name}", "fetch it again"
            ) from error
    if any(offset + size > total for *_, (offset, size) in found):
        raise IncompleteBaseModelError(
            file.parent, f"whole {file.name} (it is cut short)", "fetch it again"
        )
    return found


def _span_sha256(tensor: _Tensor) -> str:
    file, *_, (offset, size) = tensor
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(offset)
        while size and (chunk := stream.read(min(_CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def _tokenizer_sha256(directory: Path) -> str:
    tokenizer = read_json(directory, "tokenizer.json", "")
    # Settings of the last call, which some libraries leave in the file; not the tokenizer.
    for transient in ("padding", "truncation"):
        tokenizer.pop(transient, None)
    return _sha256_json([tokenizer, chat_template(directory)])


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    files = [
        *weight_files(directory),
        *(
            path
            for name in (
                "config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
            )
            if (path := directory / name).is_file()
        ),
    ]
    return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _read(record: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):
        return None  # none yet, or of another version: it is computed again


def _write(record: Path, content: _Record) -> None:
    aside = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")
        aside.replace(record)
    except OSError:  # a read-only cache: the fingerprint is right all the same, only slower
        aside.unlink(missing_ok=True) if os.access(record.parent, os.W_OK) else None
