"""From the store to a local directory that engines can load: verified, atomic, read-only."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from model_registry.adapter import FileEntry
from model_registry.blobs import BlobStore
from model_registry.errors import RegistryUnavailableError
from model_registry.staging import staging_directory

_CHUNK = 2**20


def fetch_files(
    blobs: BlobStore, cache: Path, digest: str, label: str, files: Mapping[str, FileEntry]
) -> Path:
    """The directory of an artifact in the cache, filled from the store when needed.

    Its name is the digest, so it never has to change. What lies there is hashed again at each
    fetch: a damaged copy is replaced from the store.

    Raises:
        CorruptArtifactError: The stored bytes are not those of the manifest.
        RegistryUnavailableError: The store cannot be reached, or the cache not be written.
    """
    target = cache / digest.removeprefix("sha256:")
    if directory_matches(target, files):
        return target
    with staging_directory(cache / "staging") as staging:
        aside = staging / "files"
        aside.mkdir()
        for name, entry in files.items():
            blobs.copy_to(f"{name} of {label}", entry, aside / name)
            (aside / name).chmod(0o444)
        _put_in_place(aside, target, staging / "old", files)
    return target


def directory_matches(directory: Path, files: Mapping[str, FileEntry]) -> bool:
    """Whether a directory holds exactly these files with exactly these bytes."""
    try:
        if {item.name for item in directory.iterdir()} != set(files):
            return False
        return all(_file_matches(directory / name, entry) for name, entry in files.items())
    except OSError:
        return False


def _file_matches(path: Path, entry: FileEntry) -> bool:
    if path.is_symlink() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _put_in_place(aside: Path, target: Path, old: Path, files: Mapping[str, FileEntry]) -> None:
    try:
        if target.exists() and not directory_matches(target, files):
            target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            # Another process was faster; its copy is as good when it is whole.
            if not directory_matches(target, files):
                raise
        _sync(target.parent)
    except OSError as error:
        detail = error.strerror or str(error)
        raise RegistryUnavailableError(f"The cache {target.parent}", detail) from error
    shutil.rmtree(old, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
