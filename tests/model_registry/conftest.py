"""Fixtures of the registry's tests."""

from pathlib import Path

import pytest

from model_registry import ModelRegistry
from tests.model_registry.adapter_files import write_adapter


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A fresh registry in a plain directory."""
    return ModelRegistry.open(tmp_path / "registry", actor="tester")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter directory."""
    return write_adapter(tmp_path / "adapter")
