# pyright: basic
# torch's tensors are typed too loosely for strict mode.
"""An adapter in PEFT layout, read into host memory in the form in which slots take it.

Refused unless every tensor finds its module: engines that skip unknown tensors answer as the bare
base model does, with status 200.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model_registry.errors import InvalidAdapterError
from model_registry.peft_config import pattern_value, read_peft_config
from service.errors import AdapterRejectedError

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class HostAdapter:
    """The matrices of one adapter, in the device's precision and with the scale folded into B."""

    name: str
    rank: int
    """The highest of its modules; lower ones use the first of its rows."""
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Module name to A [rank, inputs] and B [rank, outputs]: views of `flat`."""
    flat: torch.Tensor
    """All of them in one piece, which goes to a device in one copy."""

    @property
    def size(self) -> int:
        """Bytes in host memory."""
        return self.flat.numel() * self.flat.element_size()

    @cached_property
    def places(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Of each module's A (0) and B (1): where it begins in `flat`, and its rank."""
        return {
            (name, side): (int(matrix.storage_offset()), len(matrix))
            for name, pair in self.modules.items()
            for side, matrix in enumerate(pair)
        }


def read_adapter(
    name: str,
    directory: Path,
    shapes: Mapping[str, tuple[int, int]],
    dtype: torch.dtype,
    *,
    pinned: bool = False,
) -> HostAdapter:
    """Read and check an adapter for a base whose linear modules have `shapes` (outputs, inputs).

    Raises:
        AdapterRejectedError: Something in it is unknown, missing, of a wrong shape or not served.
    """
    try:
        config = read_peft_config((directory / "adapter_config.json").read_bytes())
        tensors = load_file(directory / "adapter_model.safetensors")
    except (InvalidAdapterError, SafetensorError, OSError) as error:
        raise AdapterRejectedError(name, str(error)) from error
    if config.get("modules_to_save"):
        raise AdapterRejectedError(
            name, "it replaces whole modules; publish a merged variant of it"
        )
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or match["module"] not in shapes:
            raise AdapterRejectedError(name, f"the base has no module for its tensor {key[:120]}")
        pairs.setdefault(match["module"], {})[match["side"]] = tensor
    if not pairs:
        raise AdapterRejectedError(name, "it holds no tensors")
    for module, pair in pairs.items():
        _check_pair(name, module, pair, shapes[module])
    sizes = {module: (len(pair["A"]), *shapes[module]) for module, pair in pairs.items()}
    adapter = empty_adapter(name, sizes, dtype, pinned=pinned)
    for module, (a, b) in adapter.modules.items():
        scale = _scale(config, module, len(a))
        a.copy_(pairs[module]["A"])
        stored = pairs[module]["B"].t()
        if stored.dtype == dtype:
            torch.mul(stored, scale, out=b)
        else:
            b.copy_(stored.float() * scale)
    # Sums are finite only if every number is: one pass without the masks of `isfinite`.
    if not torch.isfinite(adapter.flat.sum(dtype=torch.float64)):
        raise AdapterRejectedError(name, _not_finite(adapter))
    if not any(torch.count_nonzero(b) for _, b in adapter.modules.values()):
        raise AdapterRejectedError(name, "all of its B matrices are zero: it changes nothing")
    return adapter


def empty_adapter(
    name: str, sizes: Mapping[str, tuple[int, int, int]], dtype: torch.dtype, *, pinned: bool
) -> HostAdapter:
    """Room for an adapter whose modules have these (ranks, outputs, inputs)."""
    total = sum(rank * (outputs + inputs) for rank, outputs, inputs in sizes.values())
    flat = torch.empty(total, dtype=dtype, pin_memory=pinned)
    modules, start = {}, 0
    for module, (rank, outputs, inputs) in sizes.items():
        middle, end = start + rank * inputs, start + rank * (inputs + outputs)
        modules[module] = flat[start:middle].view(rank, -1), flat[middle:end].view(rank, -1)
        start = end
    return HostAdapter(name, max(rank for rank, _, _ in sizes.values()), modules, flat)


def _not_finite(adapter: HostAdapter) -> str:
    bad = [n for n, pair in adapter.modules.items() if not all(map(_is_finite, pair))]
    return f"{bad[0] if bad else 'one of its modules'} holds numbers that are not finite"


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _check_pair(
    name: str, module: str, pair: dict[str, torch.Tensor], shape: tuple[int, int]
) -> None:
    if len(pair) != 2:
        raise AdapterRejectedError(name, f"{module} has only one of its two matrices")
    a, b = pair["A"], pair["B"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise AdapterRejectedError(name, f"the ranks of {module} differ between A and B")
    if (b.shape[0], a.shape[1]) != shape:
        raise AdapterRejectedError(
            name,
            f"{module} maps {a.shape[1]} to {b.shape[0]}, in the base {shape[1]} to {shape[0]}",
        )


def _scale(config: dict, module: str, rank: int) -> float:
    """PEFT's rule: alpha (by pattern) over the rank, or over its square root with rsLoRA."""
    alpha = pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
