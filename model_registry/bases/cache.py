"""The cache directory of base models: where it is, room in it, one writer at a time.

A prepared model appears in it whole: it is written to a directory beside it and renamed.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from model_registry.bases.errors import CacheFullError, CacheNotWritableError

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ROOM_FOR_THE_REST = 64_000_000


def default_cache_dir() -> Path:
    """`MCQ_CACHE_DIR`, or `tracnghiem` under `XDG_CACHE_HOME`, which is `~/.cache` by default."""
    if explicit := os.environ.get("MCQ_CACHE_DIR"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracnghiem"


@contextmanager
def translate_disk_errors(cache_dir: Path) -> Generator[None]:
    """Turn a full disk and a read-only directory into errors with a remedy; the rest is a bug."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CacheFullError(cache_dir, None, _free(cache_dir)) from error
        if error.errno in _READ_ONLY:
            raise CacheNotWritableError(cache_dir, os.strerror(error.errno)) from error
        raise


def require_room(cache_dir: Path, needed: int) -> None:
    """Refuse before the first byte what would fill the disk minutes later."""
    needed += _ROOM_FOR_THE_REST
    free = _free(cache_dir)
    if free < needed:
        raise CacheFullError(cache_dir, needed, free)


@contextmanager
def exclusive(cache_dir: Path, name: str) -> Generator[None]:
    """Hold a lock, so that two processes which want the same model do the work once."""
    with translate_disk_errors(cache_dir):
        locks = cache_dir / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        handle = (locks / f"{name}.lock").open("w")
    with handle:
        try:
            import fcntl
        except ImportError:  # Windows: no lock; the rename at the end is still atomic
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def written_aside(target: Path) -> Generator[Path]:
    """Yield a fresh directory that becomes `target` if the block ends well, and vanishes if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # a killed earlier run
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        aside.chmod(0o755)
        yield aside
        for path in aside.iterdir():
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(directory: Path) -> int:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free
