"""`prepare_base`: directories as they are, GGUF files converted once."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_registry.bases.catalog import EMBEDDED_MODELS, EmbeddedModel
from model_registry.bases.errors import (
    CacheFullError,
    ConversionError,
    DownloadError,
    IncompleteBaseModelError,
)
from model_registry.bases.files import end_token_ids
from model_registry.bases.prepare import embedded_path, prepare_base


def test_a_directory_is_used_in_place(tiny: Path, tmp_path: Path) -> None:
    base = prepare_base(str(tiny), tmp_path)
    assert (base.name, base.path, base.end_token_ids) == ("tiny", tiny, (2,))
    assert prepare_base(str(tiny), tmp_path) == base


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_directory_without_a_file_is_refused_by_the_name_of_the_file(
    tiny: Path, tmp_path: Path, missing: str
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / missing).unlink()
    name = "safetensors" if missing == "model.safetensors" else missing
    with pytest.raises(IncompleteBaseModelError, match=name):
        prepare_base(str(copy), tmp_path / "cache")


def test_a_tokenizer_that_is_no_json_is_refused(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(IncompleteBaseModelError, match=r"readable tokenizer\.json"):
        prepare_base(str(copy), tmp_path / "cache")


def test_a_read_only_cache_does_not_stop_a_directory(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert prepare_base(str(tiny), tmp_path / "file" / "cache").path == tiny


def test_end_tokens_are_gathered_from_template_tokenizer_and_model(
    tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    assert end_token_ids(copy) == (2, 0, 7)
    (copy / "chat_template.jinja").unlink()
    (copy / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert end_token_ids(copy) == (0, 7, 2)


def test_what_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    cases = {"empty": b"", "text": b"hello" * 100, "cut": b"GGUF\x03\0\0\0" + b"\xff" * 8}
    for name, content in cases.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=f"{name}.gguf cannot be used"):
            prepare_base(str(path), tmp_path / "cache", progress=False)
        assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_half_done_conversion_is_never_used(
    publish: Callable[..., EmbeddedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish(b"no gguf at all", 1)
    monkeypatch.setitem(EMBEDDED_MODELS, "toy", model)
    with pytest.raises(ConversionError):
        prepare_base("embedded:toy", tmp_path, progress=False)
    target = embedded_path(model, tmp_path)
    assert not target.exists()
    leftover = target.parent / f".{target.name}.killed.tmp"  # what a killed run leaves
    leftover.mkdir()
    with pytest.raises(ConversionError):
        prepare_base("embedded:toy", tmp_path, progress=False)
    assert not leftover.exists()


def test_no_room_for_the_conversion_is_refused_before_it(
    publish: Callable[..., EmbeddedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(publish(b"x", 1), converted_size=10**15)
    monkeypatch.setitem(EMBEDDED_MODELS, "toy", model)
    with pytest.raises(CacheFullError):
        prepare_base("embedded:toy", tmp_path, progress=False)


def test_an_unreachable_hub_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DownloadError, match=r"hf:org/name.*Hub cannot be reached"):
        prepare_base("hf:org/name", tmp_path)
