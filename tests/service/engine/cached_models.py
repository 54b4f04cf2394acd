"""Real base models that earlier commands have left in the cache; tests use what is there."""

from pathlib import Path

from model_registry.bases.cache import default_cache_dir


def cached_models() -> list[Path]:
    """Their directories, the smaller ones first."""
    folder = default_cache_dir() / "models"
    found = [path.parent for path in folder.glob("*/tokenizer.json")]
    return sorted(found, key=lambda path: (path.parent / "model.safetensors").name + path.name)
