"""Small real files: a base model's headers and an adapter for it, written without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_registry import BaseFingerprint, ModelRegistry

HIDDEN, INTERMEDIATE, RANK = 8, 16, 2
BASE = BaseFingerprint(
    arch="sha256:" + "a" * 64, weights="sha256:" + "b" * 64, tokenizer="sha256:" + "c" * 64
)
BASE_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{
        f"model.layers.{layer}.{module}.weight": shape
        for layer in range(2)
        for module, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        }.items()
    },
}


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]
) -> Path:
    """A safetensors file from raw bytes."""
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        end = position + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


def adapter_tensors(fill: bytes = b"\x01") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A and B for every target module of the base."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, shape in BASE_SHAPES.items():
        if not name.endswith("_proj.weight"):
            continue
        prefix = "base_model.model." + name.removesuffix(".weight")
        outputs, inputs = shape[0], shape[1]
        tensors[f"{prefix}.lora_A.weight"] = ("F32", (RANK, inputs), b"\x02" * RANK * inputs * 4)
        tensors[f"{prefix}.lora_B.weight"] = ("F32", (outputs, RANK), fill * outputs * RANK * 4)
    return tensors


def adapter_config(**changes: object) -> dict[str, object]:
    """adapter_config.json as PEFT writes it, shortened."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "/home/someone/models/tiny",
        "r": RANK,
        "lora_alpha": 4,
        "use_rslora": False,
        "target_modules": ["up_proj", "q_proj"],
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "task_type": "CAUSAL_LM",
        **changes,
    }


def write_adapter(directory: Path, fill: bytes = b"\x01", **config: object) -> Path:
    """An adapter directory; another fill is another adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "adapter_model.safetensors", adapter_tensors(fill))
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config(**config)))
    return directory


def write_base(directory: Path) -> Path:
    """A base model directory: its weight file with all shapes."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: ("F32", shape, bytes(4 * _size(shape))) for name, shape in BASE_SHAPES.items()}
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def publish(registry: ModelRegistry, directory: Path, name: str = "mcq-vi", **changes: Any) -> Any:
    """Publish with the facts that do not matter to a test."""
    facts: dict[str, Any] = {
        "prompt_format": "chat/1",
        "base": BASE,
        "precision": "bf16",
        **changes,
    }
    return registry.publish(name, directory, **facts)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
