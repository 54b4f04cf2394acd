"""From URLs to the parts of a registry."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_registry.blobs import BlobStore
from model_registry.errors import RegistryUnavailableError
from model_registry.index.database import Database


def open_parts(
    url: str, store_url: str | None, cache_dir: Path | None
) -> tuple[Database, BlobStore, Path]:
    """Index, store and cache directory for the arguments of `ModelRegistry.open`."""
    directory = local_directory(url)
    if directory is not None:
        database = Database.in_directory(directory)
        blobs = _open_store(store_url) if store_url else BlobStore.in_directory(directory)
        return database, blobs, cache_dir or _cache_beside(directory)
    if not store_url:
        raise RegistryUnavailableError(
            f"The index {url.split('@')[-1]}",
            "a database needs a store for the files beside it: give --store s3://bucket/prefix",
        )
    return Database.at(url), _open_store(store_url), cache_dir or default_cache()


def local_directory(url: str) -> Path | None:
    """The directory that a URL or path means, None when it is something else."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url).expanduser()


def default_cache() -> Path:
    """Where fetched adapters go when nothing else is said."""
    root = os.environ.get("MCQ_CACHE_DIR")
    if root:
        return Path(root) / "adapters"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "tracnghiem" / "adapters"


def _open_store(url: str) -> BlobStore:
    directory = local_directory(url)
    return BlobStore.at(url) if directory is None else BlobStore.in_directory(directory)


def _cache_beside(directory: Path) -> Path:
    """Inside the registry's own directory; elsewhere if that is read-only."""
    return directory / "cache" if os.access(directory, os.W_OK) else default_cache()
