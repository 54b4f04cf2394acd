"""One file out, one file in: versions for a network that reaches no other.

A bundle is an uncompressed tar with one folder per version, as `export_directory` writes it.
Reading it trusts nothing: member names, kinds, sizes and their number are bounded, and nothing is
written outside a folder of ours. Uncompressed, because weights do not compress and a compressed
bomb cannot be sized.
"""

import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from model_registry.errors import InvalidAdapterError, RegistryUnavailableError
from model_registry.portable import MANIFEST_FILE, RECORD_FILE
from model_registry.staging import ADAPTER_FILES, CONFIG, WEIGHTS

_ALLOWED = {**ADAPTER_FILES, MANIFEST_FILE: 8 * 2**20, RECORD_FILE: 8 * 2**20}
_FOLDER = re.compile(r"[a-z0-9-]{1,80}")
_MAX_VERSIONS = 10_000


def write_bundle(folders: Sequence[Path], file: Path) -> None:
    """Put exported folders into one file; equal content gives equal bytes."""
    if file.exists():
        raise InvalidAdapterError("exists", f"{file} exists already")
    aside = file.with_name(f".{file.name}.part")
    try:
        with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as archive:
            for folder in folders:
                for name in (RECORD_FILE, MANIFEST_FILE, CONFIG, WEIGHTS):
                    info = tarfile.TarInfo(f"{folder.name}/{name}")
                    info.size = (folder / name).stat().st_size
                    info.mode = 0o644
                    with (folder / name).open("rb") as content:
                        archive.addfile(info, content)
        aside.rename(file)
    except OSError as error:
        detail = error.strerror or str(error)
        raise RegistryUnavailableError(f"The bundle {file}", detail) from error
    finally:
        aside.unlink(missing_ok=True)


def read_bundle(file: Path, destination: Path) -> list[Path]:
    """Unpack into an empty folder of ours; returns the folders of the versions.

    Raises:
        InvalidAdapterError: `bad_bundle`, with what is wrong.
    """
    folders: dict[str, set[str]] = {}
    try:
        # Mode "r:" opens nothing that is compressed.
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, name = _place(member)
                names = folders.setdefault(folder, set())
                if name in names or len(folders) > _MAX_VERSIONS:
                    raise _bad(f"{member.name[:80]!r} comes twice, or there are too many versions")
                names.add(name)
                (destination / folder).mkdir(exist_ok=True)
                _unpack(archive, member, destination / folder / name)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, InvalidAdapterError):
            raise
        raise _bad(f"{file.name} is not a whole, uncompressed tar file") from error
    except OSError as error:
        raise RegistryUnavailableError(
            f"The bundle {file}", error.strerror or str(error)
        ) from error
    if not folders:
        raise _bad(f"{file.name} holds no version")
    return [destination / folder for folder in folders]


def bundle_staging() -> "tempfile.TemporaryDirectory[str]":
    """A folder to unpack into or to gather in."""
    return tempfile.TemporaryDirectory(prefix="mcq-bundle-")


def _place(member: tarfile.TarInfo) -> tuple[str, str]:
    folder, _, name = member.name.partition("/")
    if not member.isreg() or member.issparse():
        raise _bad(f"{member.name[:80]!r} is not a plain file")
    if not _FOLDER.fullmatch(folder) or name not in _ALLOWED:
        raise _bad(f"{member.name[:80]!r} has no place in a bundle")
    if member.size > _ALLOWED[name]:
        raise _bad(f"{member.name[:80]!r} is too large")
    return folder, name


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    left = member.size
    with content, target.open("xb") as file:
        while left > 0:
            chunk = content.read(min(2**20, left))
            if not chunk:
                raise _bad(f"{member.name[:80]!r} ends early")
            file.write(chunk)
            left -= len(chunk)


def _bad(detail: str) -> InvalidAdapterError:
    return InvalidAdapterError("bad_bundle", detail)
