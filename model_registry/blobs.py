"""Bytes by their sha256, in a local directory or a bucket: `blobs/sha256/ab/…`,
`manifests/sha256/….json`.

Writing the same bytes twice changes nothing, so no lock is needed. Reading checks the digest,
always.
"""

import datetime
import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from model_registry.adapter import FileEntry
from model_registry.errors import CorruptArtifactError, RegistryUnavailableError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_SMALL = 64 * 2**20
_MAX_MANIFEST = 8 * 2**20


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of the store, as far as a listing tells."""

    digest: str
    """Of a blob: hex digits; of a manifest: `sha256:` and hex digits."""
    path: str
    size: int
    age_s: float


class BlobStore:
    """Content-addressed bytes behind one URL."""

    def __init__(self, store: "ObjectStore", label: str, directory: Path | None = None) -> None:
        self._store = store
        self._label = label
        self._directory = directory

    @classmethod
    def in_directory(cls, directory: Path) -> "BlobStore":
        """Blobs as files of a local directory."""
        from obstore.store import LocalStore

        try:
            store = LocalStore(directory)
        except (BaseError, OSError) as error:
            raise RegistryUnavailableError(f"The folder {directory}", _first_line(error)) from error
        return cls(store, str(directory), directory)

    @classmethod
    def at(cls, url: str) -> "BlobStore":
        """Blobs in a bucket, `s3://bucket/prefix`; keys and endpoint from `AWS_…` variables."""
        from obstore.store import from_url

        options: dict[str, Any] = {}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["client_options"] = {"allow_http": True}
        try:
            return cls(from_url(url, **options), url)
        except (BaseError, ValueError) as error:
            raise RegistryUnavailableError(f"The store {url}", _first_line(error)) from error

    def has(self, digest: str) -> bool:
        """Whether the blob is there (its content is checked on reading)."""
        with self._translated():
            try:
                obstore.head(self._store, _blob_path(digest))
            except FileNotFoundError:
                return False
            return True

    def put_file(self, digest: str, file: Path) -> None:
        """Store a file under its digest; atomic."""
        path = _blob_path(digest)
        with self._translated():
            if file.stat().st_size <= _SMALL:
                try:
                    obstore.put(self._store, path, file, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    # Written again so that its age starts anew: garbage collection looks at it.
                    obstore.put(self._store, path, file, mode="overwrite", use_multipart=False)
            elif self._directory is None or not _link(file, self._directory / path):
                obstore.put(self._store, path, file)
        self._flush(path)

    def put_manifest(self, digest: str, data: bytes) -> None:
        """Store a manifest under its digest; atomic."""
        path = _manifest_path(digest)
        with self._translated():
            obstore.put(self._store, path, data, use_multipart=False)
        self._flush(path)

    def read_manifest(self, digest: str) -> bytes:
        """The canonical bytes of a manifest, checked."""
        path = _manifest_path(digest)
        with self._translated():
            try:
                result = obstore.get(self._store, path)
            except FileNotFoundError as error:
                raise CorruptArtifactError(f"Manifest {digest}", "it is missing") from error
            if result.meta["size"] > _MAX_MANIFEST:
                raise CorruptArtifactError(f"Manifest {digest}", "it is too large")
            data = bytes(result.bytes())
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise CorruptArtifactError(f"Manifest {digest}", "its content has another digest")
        return data

    def copy_to(self, name: str, entry: FileEntry, destination: Path) -> None:
        """Write a blob to a new file while checking it."""
        digest = hashlib.sha256()
        # A merged model is gigabytes: on one disk it is shared, and then read to be checked.
        shared = self._directory / _blob_path(entry.sha256) if self._directory else None
        if shared is not None and entry.size > _SMALL and _link(shared, destination):
            self.check(name, entry)
            return
        try:
            with destination.open("xb") as file:
                for chunk in self._chunks(name, entry):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            detail = error.strerror or str(error)
            raise RegistryUnavailableError(f"The folder {destination.parent}", detail) from error
        if digest.hexdigest() != entry.sha256:
            raise CorruptArtifactError(name, "its content has another digest")

    def check(self, name: str, entry: FileEntry) -> None:
        """Read a blob to the end and compare."""
        digest = hashlib.sha256()
        for chunk in self._chunks(name, entry):
            digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            raise CorruptArtifactError(name, "its content has another digest")

    def list_blobs(self) -> Iterator[StoredObject]:
        """Every stored blob."""
        for path, size, age_s in self._list("blobs/sha256"):
            yield StoredObject(path.rsplit("/", 1)[-1], path, size, age_s)

    def list_manifests(self) -> Iterator[StoredObject]:
        """Every stored manifest."""
        for path, size, age_s in self._list("manifests/sha256"):
            name = path.rsplit("/", 1)[-1].removesuffix(".json")
            yield StoredObject(f"sha256:{name}", path, size, age_s)

    def delete(self, path: str) -> None:
        """Remove an object; absent is fine."""
        with self._translated(), suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def _list(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        moment = datetime.datetime.now(datetime.UTC)
        with self._translated():
            for batch in obstore.list(self._store, prefix=prefix):  # pyright: ignore[reportUnknownMemberType]
                for item in batch:
                    age = (moment - item["last_modified"]).total_seconds()
                    yield item["path"], item["size"], age

    def _chunks(self, name: str, entry: FileEntry) -> Iterator[bytes]:
        with self._translated():
            try:
                result = obstore.get(self._store, _blob_path(entry.sha256))
            except FileNotFoundError as error:
                raise CorruptArtifactError(name, "its content is missing from the store") from error
            if result.meta["size"] != entry.size:
                raise CorruptArtifactError(
                    name, f"it has {result.meta['size']} bytes instead of {entry.size}"
                )
            for chunk in result.stream(min_chunk_size=2**20):
                yield bytes(chunk)

    def _flush(self, path: str) -> None:
        """On a local disk, survive a power cut too."""
        if self._directory is None:
            return
        target = self._directory / path
        for item in (target, target.parent):
            descriptor = os.open(item, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise RegistryUnavailableError(
                f"The store {self._label}", _first_line(error)
            ) from error


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest[:2]}/{digest}"


def _manifest_path(digest: str) -> str:
    return f"manifests/sha256/{digest.removeprefix('sha256:')}.json"


def _link(source: Path, destination: Path) -> bool:
    """Give a file a second name, atomically; False where the disk does not allow it."""
    aside = destination.with_name(f".{destination.name}.{os.urandom(4).hex()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, aside)
        aside.chmod(0o444)
        aside.replace(destination)
    except OSError:
        aside.unlink(missing_ok=True)
        return False
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
