"""Everything that may not become a version, each with its reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry import ModelRegistry
from model_registry.errors import InvalidAdapterError, InvalidReferenceError
from tests.model_registry.adapter_files import (
    BASE_SHAPES,
    adapter_tensors,
    publish,
    write_adapter,
    write_base,
    write_safetensors,
)

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def _rename_tensor(directory: Path, old: str, new: str | None) -> None:
    tensors = adapter_tensors()
    value = tensors.pop(old)
    if new is not None:
        tensors[new] = value
    write_safetensors(directory / WEIGHTS, tensors)


def _replace(directory: Path, key: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
    write_safetensors(
        directory / WEIGHTS, {**adapter_tensors(), key: (dtype, shape, b"\x01" * size)}
    )


def _config(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _link(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory.parent / "elsewhere")
    (directory / WEIGHTS).symlink_to(directory.parent / "elsewhere")


def _fifo(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


A, B = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"
REFUSALS: list[tuple[str, Callable[[Path], object]]] = [
    ("missing_file", lambda d: (d / WEIGHTS).unlink()),
    ("missing_file", lambda d: (d / "adapter_config.json").unlink()),
    ("pickle", lambda d: (d / "adapter_model.bin").write_bytes(b"\x80\x04.")),
    ("pickle", lambda d: (d / "training_args.bin").write_bytes(b"PK")),
    ("unknown_file", lambda d: (d / "run.py").write_text("print()")),
    ("unknown_file", lambda d: (d / "sub").mkdir()),
    ("unknown_file", lambda d: (d / "manifest.json").write_text("{}")),
    ("not_a_file", _link),
    ("not_a_file", _fifo),
    ("bad_header", lambda d: (d / WEIGHTS).write_bytes(b"")),
    ("bad_header", lambda d: (d / WEIGHTS).write_bytes(b"\xff" * 64)),
    ("bad_header", lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b"x")),
    ("bad_header", lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1])),
    ("unknown_tensor", lambda d: _rename_tensor(d, A, A.replace("base_model.model.", ""))),
    ("unknown_tensor", lambda d: _rename_tensor(d, A, A.replace("lora_A", "lora_magnitude"))),
    ("unknown_tensor", lambda d: _replace(d, A.replace("q_proj", "k_proj"), "F32", (2, 8), 64)),
    ("missing_tensor", lambda d: _rename_tensor(d, A, None)),
    ("missing_tensor", lambda d: write_safetensors(d / WEIGHTS, {})),
    ("bad_shape", lambda d: _replace(d, A, "F32", (3, 8), 96)),
    ("bad_shape", lambda d: _replace(d, A, "F32", (16,), 64)),
    ("bad_shape", lambda d: _config(d, r=4)),
    ("bad_dtype", lambda d: _replace(d, A, "I64", (2, 8), 128)),
    ("no_effect", lambda d: write_safetensors(d / WEIGHTS, adapter_tensors(b"\x00"))),
    ("bad_config", lambda d: (d / "adapter_config.json").write_text("{")),
    ("bad_config", lambda d: (d / "adapter_config.json").write_text("[" * 100_000)),
    ("bad_config", lambda d: (d / "adapter_config.json").write_text("[]")),
    ("bad_config", lambda d: _config(d, peft_type="LOHA")),
    ("bad_config", lambda d: _config(d, use_dora=True)),
    ("bad_config", lambda d: _config(d, bias="all")),
    ("bad_config", lambda d: _config(d, init_lora_weights="pissa_niter_4")),
    ("bad_config", lambda d: _config(d, r=True)),
    ("bad_config", lambda d: _config(d, r="2")),
    ("bad_config", lambda d: _config(d, lora_alpha=0)),
    ("bad_config", lambda d: _config(d, rank_pattern={".*": 2})),
    ("bad_config", lambda d: _config(d, target_modules=[1])),
    ("too_large", lambda d: (d / "adapter_config.json").write_text(" " * (2**20 + 1))),
]


@pytest.mark.parametrize(("reason", "damage"), REFUSALS)
def test_a_bad_adapter_is_refused_and_leaves_nothing(
    tmp_path: Path, reason: str, damage: Callable[[Path], object]
) -> None:
    registry = ModelRegistry.open(tmp_path / "registry")
    adapter = write_adapter(tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(InvalidAdapterError) as refusal:
        publish(registry, adapter)
    assert refusal.value.reason == reason
    assert registry.list_adapters() == ()
    assert not (tmp_path / "registry" / "blobs").exists()
    assert list((tmp_path / "registry" / "cache" / "staging").iterdir()) == []


def _publish_on_base(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    registry = ModelRegistry.open(tmp_path / "registry")
    publish(registry, write_adapter(tmp_path / "adapter"), base_shapes=shapes)


def test_tensors_fit_the_headers_of_the_base(registry: ModelRegistry, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    assert publish(registry, write_adapter(tmp_path / "a"), base_directory=base).number == 1
    with pytest.raises(InvalidAdapterError, match="no_base"):
        publish(registry, write_adapter(tmp_path / "a"), base_directory=tmp_path / "a" / "none")


def test_a_module_that_the_base_has_not_is_refused(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in BASE_SHAPES.items() if "layers.1" not in name}
    with pytest.raises(InvalidAdapterError, match="unknown_tensor"):
        _publish_on_base(tmp_path, shapes)


def test_a_target_of_the_base_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError, match="missing_tensor"):
        _publish_on_base(tmp_path, {**BASE_SHAPES, "model.layers.2.mlp.up_proj.weight": (16, 8)})


def test_another_shape_in_the_base_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(InvalidAdapterError, match="bad_shape"):
        _publish_on_base(tmp_path, {**BASE_SHAPES, name: (32, 8)})


def test_peft_readme_is_left_behind(registry: ModelRegistry, adapter: Path) -> None:
    plain = publish(registry, adapter)
    (adapter / "README.md").write_text("# A card")
    assert publish(registry, adapter) == plain


def test_a_regular_expression_becomes_the_modules_it_matched(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", target_modules=r".*\.(q|up)_proj")
    version = publish(registry, adapter, base_shapes=BASE_SHAPES)
    assert len(version.manifest.adapter.target_modules) == 4


@pytest.mark.parametrize(
    "record", [{"loss": float("nan")}, {"loss": float("inf")}, {"x": "\ud800"}, {"x": object()}]
)
def test_a_record_that_is_not_json_is_refused(
    registry: ModelRegistry, adapter: Path, record: dict[str, object]
) -> None:
    with pytest.raises(InvalidAdapterError, match="bad_record"):
        publish(registry, adapter, training=record)


@pytest.mark.parametrize("name", ["", "Mcq", "../x", "a" * 41, "a/b"])
def test_a_bad_name_is_refused(registry: ModelRegistry, adapter: Path, name: str) -> None:
    with pytest.raises(InvalidReferenceError):
        publish(registry, adapter, name=name)
