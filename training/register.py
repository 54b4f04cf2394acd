"""From a finished run's folder to a version in the registry; also for runs made elsewhere."""

import json
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.errors import RunFailedError

_LEFT_OUT = ("curve", "base", "data_statement", "name")
"""Parts of the card that the manifest says elsewhere, or that are too long for it."""


def register(run_dir: Path, registry_url: str, *, name: str | None = None) -> Any:
    """Publish `run_dir/adapter` with its card and evaluation; returns the version.

    Raises:
        RunFailedError: The folder holds no finished run.
        InvalidAdapterError: The registry refuses the files (from model_registry).
    """
    from model_registry import ModelRegistry
    from model_registry.fingerprint import BaseFingerprint

    card = _read(run_dir / "run.json")
    if card is None:
        raise RunFailedError(f"{run_dir} holds no finished run (no run.json)")
    config = TrainingConfig.model_validate(card["config"])
    evaluation = _read(run_dir / "evaluation.json")
    with ModelRegistry.open(registry_url) as registry:
        return registry.publish(
            name or config.name,
            run_dir / "adapter",
            prompt_format=config.prompt_format,
            base=BaseFingerprint.model_validate(card["base"]["fingerprint"]),
            precision=card["base"]["precision"],
            quantization=card["base"]["quantization"],
            languages=tuple(sorted(card["data"]["languages"])),
            training={k: v for k, v in card.items() if k not in _LEFT_OUT},
            evaluation=evaluation,
            data_statement=card["data_statement"],
            description=config.description,
        )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
