"""The modules of a base model, known from the headers of its safetensors files alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_registry.errors import InvalidAdapterError
from model_registry.safetensors_header import read_header

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name, with `.weight` or `.bias`, to its shape."""


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A module that maps `inputs` numbers to `outputs`."""

    outputs: int
    inputs: int


def read_base_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a base model directory; reads only headers, so it is instant."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InvalidAdapterError(
            "no_base", f"{directory} holds no safetensors file of a base model"
        )
    return {name: info.shape for file in files for name, info in read_header(file).items()}


def linear_modules(shapes: Shapes) -> dict[str, LinearShape]:
    """Every module with a two-dimensional weight."""
    return {
        name.removesuffix(".weight"): LinearShape(*shape)
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
