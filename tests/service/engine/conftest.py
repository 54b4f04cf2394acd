# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Tiny random models, random adapters written by PEFT, and an engine over them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_registry.bases.tiny import write_tiny_model
from service.engine.config import EngineConfig
from service.engine.loading import OpenEngine, open_engine

SIZES = EngineConfig(
    max_sequences=4,
    max_context=512,
    prefill_tokens=48,
    max_queue=64,
    max_adapters=3,
    max_ranks=48,
    max_grammar_states=512,
    max_drafts=2,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Qwen2."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "qwen2")


@pytest.fixture
def opened(tiny: Path) -> Iterator[OpenEngine]:
    """A running engine over the tiny model, in fp32."""
    opened = open_engine(tiny, "fp32", SIZES)
    yield opened
    opened.engine.close()


def write_adapter(
    directory: Path,
    shapes: dict[str, tuple[int, int]],
    *,
    seed: int,
    r: int = 4,
    alpha: float = 16,
    use_rslora: bool = False,
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"),
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda _: None,
) -> Path:
    """A random adapter in PEFT layout; `change` may spoil its tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, (outputs, inputs) in shapes.items():
        if not module.endswith(targets):
            continue
        patterns = (rank_pattern or {}).items()
        rank = next((v for k, v in patterns if module.endswith(f".{k}")), r)
        name = f"base_model.model.{module}"
        a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        b = torch.randn(outputs, rank, generator=generator) * 0.2
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "target_modules": list(targets),
        "rank_pattern": rank_pattern or {},
        "alpha_pattern": alpha_pattern or {},
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


KINDS: dict[str, dict] = {
    "plain": {"r": 4},
    "rslora": {"r": 8, "use_rslora": True},
    "high-rank": {"r": 32, "alpha": 32},
    "few-modules": {"r": 4, "targets": ("q_proj", "v_proj")},
    "patterns": {"r": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 2.0}},
}


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of every kind for the tiny Qwen2."""
    shapes = linear_shapes(tiny)
    root = tmp_path_factory.mktemp("adapters")
    return {
        kind: write_adapter(root / kind, shapes, seed=seed, **options)
        for seed, (kind, options) in enumerate(KINDS.items())
    }


def linear_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear layers of a saved model."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, int]] = {}
    with safe_open(directory / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith("_proj.weight"):
                outputs, inputs = file.get_slice(key).get_shape()
                shapes[key.removesuffix(".weight")] = (outputs, inputs)
    return shapes
