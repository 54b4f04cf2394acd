"""The header of a safetensors file, read with suspicion and without loading any tensor.

Everything is bounded before it is believed: the length of the header, the number of tensors, their
shapes, and that their bytes tile the rest of the file exactly, so that nothing overlaps, nothing is
hidden between tensors, and no shape asks for more memory than the file holds.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_registry.errors import InvalidAdapterError
from model_registry.json_values import as_array, as_object

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies; offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a file by name.

    Raises:
        InvalidAdapterError: The file is no well-formed safetensors file (`bad_header`).
    """
    with path.open("rb") as file:
        return parse_header(file, path.stat().st_size, path.name)


def parse_header(file: BinaryIO, size: int, name: str) -> dict[str, TensorInfo]:
    """As read_header, from an open file of known size."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _bad(name, "it is shorter than a header")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(name, f"its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise _bad(name, "it ends inside its header")
    entries = _load_object(file.read(length), name)
    metadata = entries.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise _bad(name, "its metadata is not a map of texts")
    if len(entries) > MAX_TENSORS:
        raise _bad(name, f"it names {len(entries)} tensors, the limit is {MAX_TENSORS}")
    data = 8 + length
    tensors = {key: _tensor(key, entry, data, name) for key, entry in entries.items()}
    _check_tiling(tensors, data, size, name)
    return tensors


def _load_object(raw: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise _bad(name, "a key occurs twice in its header")
        return result

    try:
        value: object = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidAdapterError):
            raise
        raise _bad(name, "its header is not JSON") from error
    entries = as_object(value)
    if entries is None:
        raise _bad(name, "its header is not a JSON object")
    return entries


def _is_text_map(value: object) -> bool:
    pairs = as_object(value)
    return pairs is not None and all(isinstance(item, str) for item in pairs.values())


def _tensor(key: str, entry: object, data: int, name: str) -> TensorInfo:
    fields = as_object(entry) or {}
    if set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _bad(name, f"tensor {key[:80]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(name, f"tensor {key[:80]!r} has an unknown dtype")
    if not _is_naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad(name, f"tensor {key[:80]!r} has no valid shape")
    if not _is_naturals(offsets) or len(offsets) != 2:
        raise _bad(name, f"tensor {key[:80]!r} has no valid offsets")
    start, end = offsets
    if end - start != math.prod(shape) * _BITS[dtype] // 8:
        raise _bad(name, f"the bytes of tensor {key[:80]!r} do not fit its shape")
    return TensorInfo(dtype, tuple(shape), data + start, data + end)


def _is_naturals(value: object) -> bool:
    items = as_array(value)
    return items is not None and all(type(item) is int and 0 <= item < 2**48 for item in items)


def _check_tiling(tensors: dict[str, TensorInfo], data: int, size: int, name: str) -> None:
    position = data
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            what = "overlaps another" if tensor.start < position else "leaves a gap before it"
            raise _bad(name, f"tensor {key[:80]!r} {what}")
        position = tensor.end
    if position != size:
        raise _bad(name, f"its tensors end at byte {position}, the file at {size}")


def _bad(name: str, detail: str) -> InvalidAdapterError:
    return InvalidAdapterError("bad_header", f"{name}: {detail}")
