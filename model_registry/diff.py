"""In what two versions differ, field by field of their manifests."""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from model_registry.adapter import AdapterVersion


def differences(one: "AdapterVersion", other: "AdapterVersion") -> dict[str, list[Any]]:
    """Dotted names of the fields that differ, each with both values; None where there is none."""
    left, right = (
        _flat(version.manifest.model_dump(mode="json", exclude_none=True))
        for version in (one, other)
    )
    return {
        key: [left.get(key), right.get(key)]
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    }


def _flat(value: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in cast("dict[str, object]", value).items():
        result.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return result
