"""A tiny random base model and a few rows: enough to run everything in seconds on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.config import TrainingConfig

SAMPLE = Path("training/data/train/handwritten_vi.jsonl")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model_registry.bases.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six passages with two questions each."""
    path = tmp_path_factory.mktemp("data") / "few.jsonl"
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:12]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make_config(tiny_base: Path, few_rows: Path, tmp_path: Path) -> Callable[..., TrainingConfig]:
    """A run of a few steps; sections are given as keyword arguments and override ours."""

    def make(**sections: Any) -> TrainingConfig:
        values: dict[str, Any] = {
            "name": "tiny",
            "base": str(tiny_base),
            "output_dir": str(tmp_path / "run"),
            "registry": str(tmp_path / "registry"),
            "data": {
                "train": [{"path": str(few_rows)}],
                "validation_share": 0.2,
                "max_length": 2000,
            },
            "method": {"r": 4, "lora_alpha": 8},
            "fit": {
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "eval_steps": 2,
                "logging_steps": 1,
                "report_to": [],
            },
            "evaluation": {"limit": 2, "max_new_tokens": 8, "reader": False},
        }
        for name, section in sections.items():
            if isinstance(section, dict) and isinstance(values.get(name), dict):
                values[name] = {**values[name], **section}
            else:
                values[name] = section
        return TrainingConfig.model_validate(values)

    return make
