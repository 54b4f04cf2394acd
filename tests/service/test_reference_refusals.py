# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""Adapters that the reference backend refuses, and what is left of them: nothing."""

import json
import shutil
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_registry.bases import prepare_base
from model_registry.bases.tiny import write_tiny_model
from service.backends.base import AdapterFiles
from service.backends.reference import ReferenceBackend
from service.errors import AdapterRejectedError
from tests.service.reference_driving import collect, files, greedy, texts, write_adapter

# PEFT asks transformers under an old name whether activations are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("refusals") / "tiny")


@pytest.fixture(scope="module")
def good(base: Path) -> AdapterFiles:
    return files(write_adapter(base, base.parent / "good", 1), "a")


@pytest.fixture
async def backend(base: Path, tmp_path: Path) -> AsyncGenerator[ReferenceBackend]:
    opened = ReferenceBackend.open(prepare_base(str(base), tmp_path), "fp32", "cpu")
    yield opened
    await opened.close()


Damage = Callable[[Path], None]


def without_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, directory / "adapter_model.safetensors")


def with_a_foreign_tensor(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(4, 64)
    save_file(tensors, directory / "adapter_model.safetensors")


def without_effect(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    zeroed = {name: t * ("lora_A" in name) for name, t in tensors.items()}
    save_file(zeroed, directory / "adapter_model.safetensors")


def full_of_nan(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file(
        {n: t * float("nan") for n, t in tensors.items()}, directory / "adapter_model.safetensors"
    )


def of_another_shape(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file(
        {**tensors, name: tensors[name][:, :-1].clone()}, directory / "adapter_model.safetensors"
    )


def with_config(**changes: object) -> Damage:
    def change(directory: Path) -> None:
        config = json.loads((directory / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps({**config, **changes}))

    return change


def no_safetensors(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 a pickle")


DAMAGES = {
    "without a tensor": without_a_tensor,
    "a foreign tensor": with_a_foreign_tensor,
    "without effect": without_effect,
    "full of NaN": full_of_nan,
    "another shape": of_another_shape,
    "a pickle": no_safetensors,
    "no such module": with_config(target_modules=["c_attn"]),
    # PEFT wraps the first before it refuses the second.
    "half of its modules": with_config(target_modules=["q_proj", "input_layernorm"]),
    "DoRA": with_config(use_dora=True),
    "biases": with_config(bias="all"),
    "a bias on B": with_config(lora_bias=True),
    "whole modules": with_config(modules_to_save=["norm"]),
    "PiSSA": with_config(init_lora_weights="pissa"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
async def test_an_adapter_that_does_not_fit_is_refused_and_leaves_no_trace(
    backend: ReferenceBackend, good: AdapterFiles, tmp_path: Path, damage: Damage, is_first: bool
) -> None:
    bad = files(Path(shutil.copytree(good.directory, tmp_path / "bad")), "c")
    damage(bad.directory)
    before = await texts(backend, greedy(tokens=12))
    if not is_first:
        await backend.load_adapter(good)
    with pytest.raises(AdapterRejectedError, match="bad-v1"):
        await backend.load_adapter(bad)
    with pytest.raises(AdapterRejectedError):
        await collect(backend, greedy(adapter=bad))
    assert await texts(backend, greedy(tokens=12)) == before
    adapted = await texts(backend, greedy(tokens=12, adapter=good))
    assert adapted != before
    assert await texts(backend, greedy(tokens=12)) == before
