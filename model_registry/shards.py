"""Writing a model as safetensors shards, one tensor in memory at a time."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SHARD_BYTES = 2 * 2**30
_WIDTH = {"F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to come: its bytes follow from dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * _WIDTH[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One file to come."""

    file_name: str
    tensors: tuple[PlannedTensor, ...]


def plan_shards(tensors: Iterable[PlannedTensor], limit: int = _SHARD_BYTES) -> list[Shard]:
    """Tensors in their order, cut into files of `limit` bytes; a larger tensor goes alone."""
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.size
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    count = len(groups)
    return [
        Shard(f"model-{i:05d}-of-{count:05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, 1)
    ]


def write_index(directory: Path, shards: list[Shard]) -> None:
    """The file that says which tensor lies in which shard; one shard needs none."""
    if len(shards) == 1:
        return
    places = {tensor.name: shard.file_name for shard in shards for tensor in shard.tensors}
    total = sum(tensor.size for shard in shards for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


class ShardWriter:
    """One shard, filled in the planned order."""

    def __init__(self, directory: Path, shard: Shard) -> None:
        self._file = (directory / shard.file_name).open("xb")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor in shard.tensors:
            end = position + tensor.size
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # readers map the data and want it aligned
        self._file.write(len(raw).to_bytes(8, "little") + raw)
        self._expected = self._file.tell() + position

    def write(self, data: memoryview) -> None:
        """The next bytes of the current tensor."""
        self._file.write(data)

    def close(self) -> None:
        """On disk for good; every planned byte has to have come."""
        assert self._file.tell() == self._expected, "a shard was not filled as planned"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """After an error."""
        self._file.close()


def rows_per_chunk(
    shape: tuple[int, ...], limit_elements: int = 2**24
) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together cover a tensor, each of a bounded number of elements."""
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:]) if shape else 1
    step = max(1, limit_elements // max(1, width))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
