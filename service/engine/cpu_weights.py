# pyright: basic
# safetensors is typed too loosely for strict mode.
"""The 8-bit weights of a base model, kept on disk: rounding them takes longer than all the rest of
a start.

A folder of the cache belongs to one state of one model's files; it appears whole or not at all. A
cache that cannot be written, or read, costs time only.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mcq.errors import McqError
from model_registry.bases.cache import require_room
from model_registry.bases.files import weight_files
from service.engine.cpu_int8 import RoundedWeight

_log = logging.getLogger(__name__)
_FORMAT = "int8-1"
Rounding = Callable[[str, Callable[[], RoundedWeight]], RoundedWeight]
"""A matrix by name; the function makes it if the cache does not have it."""


def cache_folder(directory: Path, cache_dir: Path) -> Path:
    """Where the rounded weights of a model directory are kept."""
    states = [(str(f.resolve()), f.stat()) for f in weight_files(directory)]
    key = repr([(name, state.st_size, state.st_mtime_ns) for name, state in states])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_dir / "int8" / f"{directory.resolve().name}-{digest}-{_FORMAT}"


@contextmanager
def rounded_weights(folder: Path | None, size: int) -> Generator[Rounding]:
    """Yield what gives matrices, on any thread; what was not in `folder` is there afterwards.

    Args:
        size: Bytes of all matrices together.
    """
    if folder is None:
        yield _make
    elif folder.is_dir():
        yield partial(_read, folder)
    else:
        with _written(folder, size) as keep:
            yield keep


def _make(name: str, make: Callable[[], RoundedWeight]) -> RoundedWeight:
    del name
    return make()


def _read(folder: Path, name: str, make: Callable[[], RoundedWeight]) -> RoundedWeight:
    try:
        return RoundedWeight(**load_file(folder / f"{name}.safetensors"))
    except (OSError, SafetensorError, TypeError) as error:
        _log.warning("Cannot read %s of %s: %s", name, folder, error)
        return make()


@contextmanager
def _written(folder: Path, size: int) -> Generator[Rounding]:
    try:
        require_room(folder, size)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except (OSError, McqError) as error:
        _log.warning("The 8-bit weights are not kept for the next start: %s", error)
        yield _make
        return
    failures: list[Exception] = []

    def keep(name: str, make: Callable[[], RoundedWeight]) -> RoundedWeight:
        weight = make()
        if not failures:
            try:
                _save(weight, aside / f"{name}.safetensors")
            except (OSError, SafetensorError) as error:
                failures.append(error)
        return weight

    try:
        yield keep
        if not failures:
            aside.chmod(0o755)
            aside.rename(folder)
    except OSError as error:
        failures.append(error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if failures and not folder.is_dir():  # else another process was first
        _log.warning("The 8-bit weights are not kept for the next start: %s", failures[0])


def _save(weight: RoundedWeight, path: Path) -> None:
    save_file({"whole": weight.whole, "scale": weight.scale}, path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
