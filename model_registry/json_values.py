"""Narrowing of values that came out of a JSON file; None when they are something else."""

from typing import Any, cast


def as_object(value: object) -> dict[str, Any] | None:
    """The value as a JSON object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_array(value: object) -> list[Any] | None:
    """The value as a JSON array."""
    return cast("list[Any]", value) if isinstance(value, list) else None
