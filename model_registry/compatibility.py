"""Whether the tensors of an adapter are exactly the ones its configuration and its base ask for.

A tensor under a wrong prefix is ignored in silence by inference engines, which then answer as the
base model does; so every tensor has to find its module, and every module its tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_registry.adapter import LoraSettings
from model_registry.base_modules import LinearShape, Shapes, linear_modules
from model_registry.errors import InvalidAdapterError
from model_registry.json_values import as_array
from model_registry.peft_config import pattern_value, target_matches
from model_registry.safetensors_header import TensorInfo, read_header

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FLOATS = ("F16", "BF16", "F32")
_CHUNK = 2**20


def check_tensors(
    path: Path, config: dict[str, Any], base_shapes: Shapes | None
) -> tuple[LoraSettings, list[str]]:
    """Check a weight file against its configuration and, when known, the base's shapes.

    Returns the settings for the manifest and the names of the adapted modules.

    Raises:
        InvalidAdapterError: `unknown_tensor`, `missing_tensor`, `bad_shape`, `bad_dtype`,
        `no_effect`.
    """
    tensors = read_header(path)
    sides, saved = _sort_tensors(tensors, config)
    for module in sides:
        _check_pair(module, sides[module], config)
    if base_shapes is not None:
        _check_base(sides, saved, config, base_shapes)
    _check_effect(path, [pair["B"] for pair in sides.values()], bool(saved))
    ranks = [pair["A"].shape[0] for pair in sides.values()]
    settings = LoraSettings(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        use_rslora=bool(config.get("use_rslora")),
        target_modules=_target_names(config, sorted(sides)),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        modules_to_save=tuple(sorted(config.get("modules_to_save") or ())),
        modules=len(sides),
        max_rank=max(ranks, default=0),
    )
    return settings, sorted(sides)


def _sort_tensors(
    tensors: Mapping[str, TensorInfo], config: dict[str, Any]
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    to_save: list[str] = config.get("modules_to_save") or []
    sides: dict[str, dict[str, TensorInfo]] = {}
    saved: dict[str, TensorInfo] = {}
    for key, tensor in tensors.items():
        if not key.startswith(_PREFIX):
            raise InvalidAdapterError(
                "unknown_tensor", f"{key[:120]!r} does not start with {_PREFIX}"
            )
        if tensor.dtype not in _FLOATS:
            raise InvalidAdapterError("bad_dtype", f"{key[:120]!r} is {tensor.dtype}")
        name = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(name)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif target_matches(to_save, name.rpartition(".")[0]):
            saved[name] = tensor
        else:
            raise InvalidAdapterError(
                "unknown_tensor", f"{key[:120]!r} belongs to no target module"
            )
    if not sides and not saved:
        raise InvalidAdapterError("missing_tensor", "the file holds no tensor of an adapter")
    return sides, saved


def _check_pair(module: str, pair: dict[str, TensorInfo], config: dict[str, Any]) -> None:
    targets = as_array(config.get("target_modules"))
    if targets is not None and not target_matches(targets, module):
        raise InvalidAdapterError("unknown_tensor", f"{module} is not among target_modules")
    for side in "AB":
        if side not in pair:
            raise InvalidAdapterError("missing_tensor", f"{module} has no lora_{side}")
        if len(pair[side].shape) != 2:
            raise InvalidAdapterError("bad_shape", f"lora_{side} of {module} is not a matrix")
    rank = pattern_value(config.get("rank_pattern") or {}, module, config["r"])
    if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
        found = f"{pair['A'].shape[0]} and {pair['B'].shape[1]}"
        raise InvalidAdapterError("bad_shape", f"{module} has rank {found}, the config says {rank}")


def _check_base(
    sides: dict[str, dict[str, TensorInfo]],
    saved: dict[str, TensorInfo],
    config: dict[str, Any],
    base_shapes: Shapes,
) -> None:
    modules = linear_modules(base_shapes)
    for module, pair in sides.items():
        linear = modules.get(module)
        if linear is None:
            raise InvalidAdapterError("unknown_tensor", f"the base has no module {module}")
        shape = LinearShape(outputs=pair["B"].shape[0], inputs=pair["A"].shape[1])
        if shape != linear:
            raise InvalidAdapterError("bad_shape", f"{module} is {linear} in the base, not {shape}")
    for name, tensor in saved.items():
        expected = base_shapes.get(name)
        # A tied output matrix is stored once, under the name of the embedding.
        if expected is not None and tensor.shape != expected:
            raise InvalidAdapterError("bad_shape", f"{name} is {expected} in the base")
        if expected is None and not name.startswith("lm_head."):
            raise InvalidAdapterError("unknown_tensor", f"the base has no parameter {name}")
    for module in _expected_modules(config, modules):
        if module not in sides:
            raise InvalidAdapterError("missing_tensor", f"{module} is a target without tensors")


def _expected_modules(config: dict[str, Any], modules: Mapping[str, LinearShape]) -> list[str]:
    targets = as_array(config.get("target_modules"))
    if targets is None:
        return []  # a regular expression: the tensors themselves say what it matched
    if config.get("layers_to_transform") is not None or config.get("layers_pattern"):
        return []
    skipped = as_array(config.get("exclude_modules")) or []
    return [m for m in modules if target_matches(targets, m) and not target_matches(skipped, m)]


def _check_effect(path: Path, sides: list[TensorInfo], has_saved: bool) -> None:
    """An adapter whose B matrices are all zero is the base model under another name."""
    if has_saved:
        return
    with path.open("rb") as file:
        for tensor in sides:
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left > 0:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    break
                if chunk.count(0) != len(chunk):
                    return
                left -= len(chunk)
    raise InvalidAdapterError("no_effect", "all of its B matrices are zero: it changes nothing")


def _target_names(config: dict[str, Any], modules: list[str]) -> tuple[str, ...]:
    targets = as_array(config.get("target_modules"))
    return tuple(modules) if targets is None else tuple(sorted(set(targets)))
