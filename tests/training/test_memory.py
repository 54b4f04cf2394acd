"""The plan against peaks that were measured on an H100 (Qwen2.5-1.5B shapes, 2,048-token rows)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.config import TrainingConfig
from training.errors import ConfigError
from training.memory import GIB, Shape, describe_plan, parse_size, predict, remedies

SHAPE = Shape(
    weights=1_543_569_408,
    linear=1_310_195_712,
    adapted=tuple(
        layer
        for _ in range(28)
        for layer in (
            ("q_proj", 1536, 1536),
            ("k_proj", 1536, 256),
            ("v_proj", 1536, 256),
            ("o_proj", 1536, 1536),
            ("gate_proj", 1536, 8960),
            ("up_proj", 1536, 8960),
            ("down_proj", 8960, 1536),
        )
    ),
    layers=28,
    hidden=1536,
    intermediate=8960,
    query=1536,
    key_value=256,
    embedding=233_373_696,
)
_CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": True}
MEASURED: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("peft", {"per_device_train_batch_size": 1}, {}, 9.26),
    ("peft", {"per_device_train_batch_size": 2}, {}, 15.18),
    ("peft", {"per_device_train_batch_size": 4}, {}, 27.18),
    ("peft", {"per_device_train_batch_size": 2, "liger": True}, {}, 12.60),
    ("peft", {"per_device_train_batch_size": 8, **_CHECKPOINTED}, {}, 7.19),
    ("peft", {"per_device_train_batch_size": 8, "liger": True, **_CHECKPOINTED}, {}, 6.73),
    ("peft", {"per_device_train_batch_size": 2}, {"quantization": "nf4"}, 11.96),
    ("lora", {"per_device_train_batch_size": 2, "liger": True}, {}, 11.08),
    ("lora", {"per_device_train_batch_size": 8, "liger": True, **_CHECKPOINTED}, {}, 5.86),
    ("lora", {"per_device_train_batch_size": 12, "liger": True, **_CHECKPOINTED}, {}, 7.21),
    ("layers", {"per_device_train_batch_size": 2}, {}, 8.62),
    ("layers", {"per_device_train_batch_size": 4}, {}, 13.99),
    ("layers", {"per_device_train_batch_size": 8, **_CHECKPOINTED}, {}, 6.63),
    ("layers", {"per_device_train_batch_size": 12, **_CHECKPOINTED}, {}, 7.99),
]
"""What is one function (none, adapted linear layers, decoder layers), the run, the peak in GiB."""


@pytest.mark.parametrize(("fused", "fit", "method", "measured"), MEASURED)
def test_the_plan_is_within_15_percent_of_the_measured_peak(
    make_config: Callable[..., TrainingConfig],
    fused: str,
    fit: dict[str, Any],
    method: dict[str, Any],
    measured: float,
) -> None:
    config = make_config(
        fit={"fused_lora": fused != "peft", "fused_layers": fused == "layers", **fit},
        method={"r": 16, "lora_alpha": 32, **method},
    )
    shape = dataclasses.replace(SHAPE, fusible=fused == "layers")
    assert predict(config, shape, 2048, "bf16").peak / GIB == pytest.approx(measured, rel=0.15)


@pytest.mark.filterwarnings("ignore")  # transformers warns peft of its own future
@pytest.mark.parametrize("checkpointing", [True, False])
def test_fused_layers_keep_what_the_plan_counts(
    make_config: Callable[..., TrainingConfig], tiny_base: Path, checkpointing: bool
) -> None:
    import peft
    import torch
    import transformers

    from training.fused_layers import fuse_layers
    from training.memory import shape_of

    config = make_config(fit={"fused_layers": True, "activation_checkpointing": checkpointing})
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(tiny_base)
    shape = shape_of(model)
    assert shape.fusible
    settings: Any = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapt: Any = peft.get_peft_model
    adapted: Any = adapt(model, peft.LoraConfig(**settings)).train()
    fuse_layers(adapted)
    if checkpointing:
        adapted.base_model.model.activation_checkpointing_enable()
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in adapted.parameters()}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 96
    hidden = torch.randn(1, tokens, shape.hidden, requires_grad=True)
    layer = adapted.base_model.model.model.layers[0]
    angles = torch.randn(2, 1, tokens, shape.hidden // 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(hidden, position_embeddings=(angles[0], angles[1]), attention_mask=None)
    config = config.model_copy(
        update={"fit": config.fit.model_copy(update={"per_device_train_batch_size": 1})}
    )
    predicted = predict(config, shape, tokens, "fp32").activations / shape.layers
    assert sum(storages.values()) == pytest.approx(predicted, rel=0.01)


def test_the_plan_of_the_benchmark_is_below_60_percent_of_the_plain_script(
    make_config: Callable[..., TrainingConfig],
) -> None:
    config = make_config(
        fit={
            "fused_layers": True,
            "per_device_train_batch_size": 8,
            "activation_checkpointing": True,
        },
        method={"r": 16, "lora_alpha": 32},
    )
    shape = dataclasses.replace(SHAPE, fusible=True)
    assert predict(config, shape, 2048, "bf16").peak / GIB < 0.6 * 11.5


def test_each_remedy_needs_less_than_the_one_before(
    make_config: Callable[..., TrainingConfig],
) -> None:
    config = make_config(fit={"per_device_train_batch_size": 8}, method={"r": 64})
    peaks = [p.peak for _, p in remedies(config, SHAPE, 2048, "bf16")]
    assert len(peaks) > 6
    assert peaks == sorted(peaks, reverse=True)


def test_a_plan_says_what_to_change_when_it_does_not_fit(
    make_config: Callable[..., TrainingConfig],
) -> None:
    assert describe_plan(make_config(), "16GiB")[1]
    text, fits = describe_plan(make_config(), "1GiB")
    assert not fits
    assert "per_device_train_batch_size: 1" in text


def test_sizes_are_read_with_their_unit() -> None:
    assert parse_size("16GiB") == parse_size("16") == 16 * GIB
    assert parse_size("24 GB") == 24e9
    with pytest.raises(ConfigError):
        parse_size("much")


def test_the_measured_figures_are_those_of_the_benchmark() -> None:
    assert Path("benchmarks/training_throughput.py").is_file()
