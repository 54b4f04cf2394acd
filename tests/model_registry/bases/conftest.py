"""Wheels, GGUF files and an index that exist only for a test; nothing here uses the network."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry.bases import download
from model_registry.bases.catalog import EmbeddedModel, WheelPart
from model_registry.bases.tiny import write_tiny_model


@pytest.fixture(autouse=True)
def _no_index(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pip and uv see the folder `index` of the test and nothing else, and are asked once."""
    if request.node.get_closest_marker("slow"):
        return
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    index = tmp_path / "index"
    index.mkdir()
    for name in ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(index))


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[bytes, int], EmbeddedModel]:
    """Put content into the index as an embedded model of so many wheels."""

    def publish(content: bytes, parts: int = 3) -> EmbeddedModel:
        step = -(-len(content) // parts)
        pieces = [content[start : start + step] for start in range(0, len(content), step)]
        return EmbeddedModel(
            name="toy",
            description="a toy",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            converted_size=1000,
            parts=tuple(
                _publish_part(tmp_path / "index", number, piece)
                for number, piece in enumerate(pieces, start=1)
            ),
        )

    return publish


def _publish_part(index: Path, number: int, piece: bytes) -> WheelPart:
    member = f"data/part{number:02}.bin"
    info = f"toy_part{number}-1.0.dist-info"
    with zipfile.ZipFile(index / f"toy_part{number}-1.0-py3-none-any.whl", "w") as wheel:
        # Whoever imports it is told so.
        wheel.writestr(f"toy_part{number}/__init__.py", "raise SystemExit('imported')\n")
        wheel.writestr(f"toy_part{number}/{member}", piece)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return WheelPart(
        f"toy-part{number}==1.0", member, len(piece), hashlib.sha256(piece).hexdigest()
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; tests that change it copy it first."""
    return write_tiny_model(tmp_path_factory.mktemp("bases") / "tiny", "qwen2")
