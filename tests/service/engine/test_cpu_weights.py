# pyright: basic
# torch is typed too loosely for strict mode.
"""8-bit weights on disk: read instead of made, whole or not there, never in the way of a start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.engine.cpu_int8 import RoundedWeight
from service.engine.cpu_weights import cache_folder, rounded_weights


def weight_of(value: int) -> RoundedWeight:
    return RoundedWeight(torch.full((2, 3), value, dtype=torch.int8), torch.ones(2))


def refuse() -> RoundedWeight:
    raise AssertionError("it should have been read")


def take(folder: Path, make: Callable[[], RoundedWeight]) -> RoundedWeight:
    with rounded_weights(folder, 8) as rounding:
        return rounding("layer", make)


def start_cut_short(folder: Path) -> None:
    with rounded_weights(folder, 8) as rounding:
        rounding("layer", lambda: weight_of(5))
        rounding("another", refuse)


def test_what_was_rounded_once_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "int8" / "model"
    take(folder, lambda: weight_of(5))
    assert torch.equal(take(folder, refuse).whole, weight_of(5).whole)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_start_cut_short_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        start_cut_short(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_broken_file_is_rounded_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "layer.safetensors").write_bytes(content)
    assert torch.equal(take(tmp_path, lambda: weight_of(7)).whole, weight_of(7).whole)
    assert "Cannot read layer" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "model"
    assert torch.equal(take(folder, lambda: weight_of(7)).whole, weight_of(7).whole)
    assert "not kept" in caplog.text


def test_other_weights_of_a_model_have_another_folder(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = cache_folder(tmp_path, tmp_path)
    weights.write_bytes(b"other")
    assert cache_folder(tmp_path, tmp_path) != before
