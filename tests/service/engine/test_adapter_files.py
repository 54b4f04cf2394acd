# pyright: basic
# torch's tensors are typed too loosely for strict mode.
"""What PEFT layouts cannot mean, or what the base has no place for, is refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.engine.adapter_files import read_adapter
from service.errors import AdapterRejectedError
from tests.service.engine.conftest import linear_shapes, write_adapter

Tensors = dict[str, torch.Tensor]
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = Q_A.replace("lora_A", "lora_B")


def unknown_module(tensors: Tensors) -> None:
    tensors[Q_A.replace("layers.0", "layers.9")] = tensors[Q_A].clone()


def unknown_kind(tensors: Tensors) -> None:
    tensors[Q_A.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(64)


def one_matrix(tensors: Tensors) -> None:
    del tensors[Q_B]


def other_rank(tensors: Tensors) -> None:
    tensors[Q_B] = torch.ones(tensors[Q_B].shape[0], 7)


def other_width(tensors: Tensors) -> None:
    tensors[Q_A] = torch.ones(4, 65)


def not_finite(tensors: Tensors) -> None:
    tensors[Q_B][0, 0] = float("nan")


def all_zero(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unknown_module, "no module for its tensor"),
        (unknown_kind, "no module for its tensor"),
        (one_matrix, "only one of its two matrices"),
        (other_rank, "ranks of .* differ"),
        (other_width, "in the base"),
        (not_finite, "not finite"),
        (all_zero, "changes nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tiny: Path, tmp_path: Path, change: Callable[[Tensors], None], reason: str
) -> None:
    shapes = linear_shapes(tiny)
    directory = write_adapter(tmp_path / "adapter", shapes, seed=1, change=change)
    with pytest.raises(AdapterRejectedError, match=reason):
        read_adapter("adapter", directory, shapes, torch.float32)


@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"peft_type": "IA3"}, {"modules_to_save": ["lm_head"]}]
)
def test_kinds_of_adapters_that_are_not_served_are_refused(
    tiny: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    shapes = linear_shapes(tiny)
    directory = write_adapter(tmp_path / "adapter", shapes, seed=1)
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    with pytest.raises(AdapterRejectedError):
        read_adapter("adapter", directory, shapes, torch.float32)


def test_a_file_that_is_no_safetensors_is_refused(tiny: Path, tmp_path: Path) -> None:
    shapes = linear_shapes(tiny)
    directory = write_adapter(tmp_path / "adapter", shapes, seed=1)
    (directory / "adapter_model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(AdapterRejectedError):
        read_adapter("adapter", directory, shapes, torch.float32)


def test_the_scale_is_folded_in_by_the_rule_of_each_kind(tiny: Path, tmp_path: Path) -> None:
    shapes = linear_shapes(tiny)
    plain, root = (
        read_adapter(
            "adapter",
            write_adapter(tmp_path / str(flag), shapes, seed=1, r=4, alpha=16, use_rslora=flag),
            shapes,
            torch.float32,
        )
        for flag in (False, True)
    )
    module = "model.layers.0.self_attn.q_proj"
    # alpha / r = 4, alpha / sqrt(r) = 8
    assert torch.allclose(root.modules[module][1], plain.modules[module][1] * 2)
