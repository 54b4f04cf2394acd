"""Files from outside, copied into a directory of ours while they are hashed.

Checks and upload then work on the copy, so that a file changed meanwhile cannot differ from what
was checked. Only plain files with known names are taken: nothing here follows a link or enters a
folder.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from model_registry.adapter import FileEntry
from model_registry.errors import InvalidAdapterError, RegistryUnavailableError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ADAPTER_FILES = {WEIGHTS: 8 * 2**30, CONFIG: 2**20}
"""The files of an adapter and the most bytes that each may have."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_CHUNK = 2**20


@contextmanager
def staging_directory(parent: Path) -> Generator[Path]:
    """A fresh directory that is gone afterwards; leftovers of killed processes fall to `gc`."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=parent, prefix="stage-"))
    except OSError as error:
        raise RegistryUnavailableError(
            f"The folder {parent}", error.strerror or str(error)
        ) from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def stage_files(
    source: Path, destination: Path, allowed: dict[str, int], ignored: tuple[str, ...] = ()
) -> dict[str, FileEntry]:
    """Copy the allowed files of a directory; everything else in it is a reason to refuse.

    Raises:
        InvalidAdapterError: `no_directory`, `missing_file`, `pickle`, `unknown_file`, `not_a_file`,
            `too_large`.
    """
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidAdapterError("no_directory", f"{source}: {error.strerror}") from error
    staged: dict[str, FileEntry] = {}
    for entry in entries:
        if entry.name in ignored and entry.is_file(follow_symlinks=False):
            continue
        if entry.name not in allowed:
            _refuse(entry.name)
        staged[entry.name] = copy_hashed(
            Path(entry.path), destination / entry.name, limit=allowed[entry.name]
        )
    return staged


def copy_hashed(source: Path, destination: Path, *, limit: int) -> FileEntry:
    """Copy one plain file, refusing links, devices and too many bytes; return its digest."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidAdapterError("not_a_file", f"{source.name}: {error.strerror}") from error
    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as reader:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidAdapterError("not_a_file", f"{source.name} is not a plain file")
        try:
            with destination.open("xb") as writer:
                while chunk := reader.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise InvalidAdapterError(
                            "too_large", f"{source.name} is larger than {limit} bytes"
                        )
                    digest.update(chunk)
                    writer.write(chunk)
        except OSError as error:
            detail = error.strerror or str(error)
            raise RegistryUnavailableError(f"The folder {destination.parent}", detail) from error
    return FileEntry(sha256=digest.hexdigest(), size=size)


def hash_files(directory: Path) -> dict[str, FileEntry]:
    """Describe the files of a directory that this process has written itself."""
    entries: dict[str, FileEntry] = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[path.name] = FileEntry(sha256=digest, size=path.stat().st_size)
    return entries


def _refuse(name: str) -> None:
    if name.endswith(_PICKLES):
        raise InvalidAdapterError(
            "pickle", f"{name} can run code when it is loaded; save the adapter as safetensors"
        )
    raise InvalidAdapterError(
        "unknown_file",
        f"{name[:120]!r} is not a file of an adapter; known: {', '.join(ADAPTER_FILES)}",
    )
