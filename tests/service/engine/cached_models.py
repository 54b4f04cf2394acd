"""Real base models that earlier commands have left in the cache; tests use what is there."""

from pathlib import Path

from model_registry.bases.cache import default_cache_dir


def cached_models() -> list[Path]:
    """Their directories, one of each tokenizer."""
    found = (default_cache_dir() / "models").glob("*/tokenizer.json")
    by_tokenizer = {path.read_bytes(): path.parent for path in sorted(found)}
    return list(by_tokenizer.values())
