"""A base model that cannot be used is refused with a sentence, whatever is wrong with its files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry.bases.errors import BaseModelError
from model_registry.bases.tiny import write_tiny_model
from service.backends.opening import open_backend
from service.config import ServiceConfig


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5_000])


def _of_another_kind(path: Path) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "nothing-known"}))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no tokenizer": ("tokenizer.json", Path.unlink, "save one beside the weights"),
    "no weights": ("model.safetensors", Path.unlink, r"\.bin\) are not loaded"),
    "weights cut short": ("model.safetensors", _cut, "fetch it again"),
    "no configuration": ("config.json", Path.unlink, "point at the directory"),
    "a list as configuration": ("config.json", lambda path: path.write_text("[]"), "JSON object"),
    "unknown architecture": ("config.json", _of_another_kind, "take another model"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random model."""
    return write_tiny_model(tmp_path_factory.mktemp("opening") / "tiny")


@pytest.mark.parametrize("kind", ["engine", "reference"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_directory_is_refused_with_the_remedy(
    damage: str, kind: str, tiny: Path, tmp_path: Path
) -> None:
    file, spoil, said = DAMAGES[damage]
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    spoil(base / file)
    settings = {"backend": kind, "base_model": str(base), "cache_dir": tmp_path / "cache"}
    with pytest.raises(BaseModelError, match=said):
        await open_backend(ServiceConfig.model_validate(settings))
