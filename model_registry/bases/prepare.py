"""From the name of a base model to a directory that transformers loads: `prepare_base`.

The first call downloads and converts; later ones only look.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from model_registry.bases.cache import (
    default_cache_dir,
    exclusive,
    require_room,
    translate_disk_errors,
    written_aside,
)
from model_registry.bases.catalog import EmbeddedModel, embedded_model
from model_registry.bases.convert import CONVERSION, convert_gguf
from model_registry.bases.download import embedded_gguf
from model_registry.bases.files import end_token_ids, require_complete
from model_registry.bases.fingerprint import fingerprint_of
from model_registry.bases.hub import fetch_from_hub
from model_registry.bases.source import BaseModelSource, SourceKind, parse_source
from model_registry.fingerprint import BaseFingerprint

_RECORD = "fingerprint.json"


@dataclass(frozen=True)
class BaseModel:
    """A base model on this disk, ready to load."""

    name: str
    source: BaseModelSource
    path: Path
    """Holds config.json, *.safetensors, the tokenizer and its chat template."""
    fingerprint: BaseFingerprint
    end_token_ids: tuple[int, ...]
    """Every token that ends a completion; the end of a turn first."""


def prepare_base(
    source: BaseModelSource | str, cache_dir: Path | None = None, progress: bool = True
) -> BaseModel:
    """Make a base model ready to load, doing only what has not been done before.

    Raises:
        BaseModelError: The source, the download, the files or the disk are at fault; the sentence
            says which and what to do.
    """
    if isinstance(source, str):
        source = parse_source(source)
    cache_dir = cache_dir or default_cache_dir()
    match source.kind:
        case SourceKind.EMBEDDED:
            path = _prepare_embedded(embedded_model(source.location), cache_dir, progress)
            record = path / _RECORD
        case SourceKind.GGUF:
            path = _prepare_gguf(Path(source.location), cache_dir, progress)
            record = path / _RECORD
        case SourceKind.HUB:
            path = fetch_from_hub(source)
            record = _record_elsewhere(cache_dir, path)
        case SourceKind.DIRECTORY:
            path = Path(source.location)
            record = _record_elsewhere(cache_dir, path)
    require_complete(path)
    return BaseModel(
        name=source.name,
        source=source,
        path=path,
        fingerprint=fingerprint_of(path, record),
        end_token_ids=end_token_ids(path),
    )


def embedded_path(model: EmbeddedModel, cache_dir: Path) -> Path:
    """Where an embedded model is, or will be."""
    return cache_dir / "models" / f"{model.name}-{model.sha256[:12]}-{CONVERSION}"


def _prepare_embedded(model: EmbeddedModel, cache_dir: Path, progress: bool) -> Path:
    target = embedded_path(model, cache_dir)
    if target.is_dir():
        return target
    with exclusive(cache_dir, target.name):
        if not target.is_dir():  # else another process made it while this one waited
            with embedded_gguf(model, cache_dir, progress=progress) as gguf:
                _convert(gguf, target, cache_dir, model.converted_size, progress)
    return target


def _prepare_gguf(gguf: Path, cache_dir: Path, progress: bool) -> Path:
    state = gguf.stat()
    key = f"{gguf}\0{state.st_size}\0{state.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    target = cache_dir / "models" / f"{gguf.stem}-{digest}-{CONVERSION}"
    if target.is_dir():
        return target
    with exclusive(cache_dir, target.name):
        if not target.is_dir():
            # The finest common quantisation has a quarter of the bits of the result.
            _convert(gguf, target, cache_dir, state.st_size * 4, progress)
    return target


def _convert(gguf: Path, target: Path, cache_dir: Path, size: int, progress: bool) -> None:
    require_room(cache_dir, size)
    with translate_disk_errors(cache_dir), written_aside(target) as directory:
        convert_gguf(gguf, directory, progress=progress)
        for file in directory.iterdir():
            file.chmod(0o644)  # a cache on a shared volume is read by other users
        fingerprint_of(directory, directory / _RECORD)


def _record_elsewhere(cache_dir: Path, path: Path) -> Path:
    """Where the fingerprint of a directory is kept that is not ours to write into."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return cache_dir / "fingerprints" / f"{path.name}-{digest}.json"
