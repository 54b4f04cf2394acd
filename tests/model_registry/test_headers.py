"""A fuzzer over safetensors headers: refused with a reason or read, never anything else."""

import io
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_registry.errors import InvalidAdapterError
from model_registry.safetensors_header import MAX_HEADER_BYTES, TensorInfo, parse_header


def _parse(data: bytes) -> dict[str, TensorInfo]:
    return parse_header(io.BytesIO(data), len(data), "file")


def _file(header: object, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def _tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = _file(
    {"__metadata__": {"format": "pt"}, "a": _tensor(0, 8, [2]), "b": _tensor(8, 12, [1])}, bytes(12)
)


def _read_or_refuse(data: bytes) -> None:
    try:
        tensors = _parse(data)
    except InvalidAdapterError as refusal:
        reason = refusal.reason
    else:
        _check_sound(tensors, len(data))
        return
    assert reason == "bad_header"


def _check_sound(tensors: dict[str, TensorInfo], size: int) -> None:
    """What every accepted file must keep: its tensors tile its data exactly."""
    spans = sorted((tensor.start, tensor.end) for tensor in tensors.values())
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end == start
    if spans:
        assert spans[-1][1] == size
    for tensor in tensors.values():
        assert math.prod(tensor.shape) <= size


def test_a_sound_file_is_read() -> None:
    tensors = _parse(GOOD)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (2,), "b": (1,)}
    _check_sound(tensors, len(GOOD))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little"),
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        _file(b"{}", b"hidden"),
        _file(b"[]"),
        _file(b"{" * 100_000),
        _file(b'{"a":1}'),
        _file(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        _file(b"\xff\xfe"),
        _file({"__metadata__": {"x": 1}}),
        _file({"__metadata__": "x"}),
        _file({"a": _tensor(0, 4, [1], "PICKLE")}, bytes(4)),
        _file({"a": _tensor(0, 8, [2]), "b": _tensor(4, 12, [2])}, bytes(12)),
        _file({"a": _tensor(0, 4, [1]), "b": _tensor(8, 12, [1])}, bytes(12)),
        _file({"a": _tensor(0, 4, [2**40, 2**40])}, bytes(4)),
        _file({"a": _tensor(0, 4, [-1, -1])}, bytes(4)),
        _file({"a": _tensor(4, 0, [1])}, bytes(4)),
        _file({"a": _tensor(0, 4, [1] * 9)}, bytes(4)),
        _file({"a": {**_tensor(0, 4, [1]), "extra": 1}}, bytes(4)),
        _file({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
    ],
)
def test_a_crooked_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidAdapterError) as refusal:
        _parse(data)
    assert refusal.value.reason == "bad_header"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read_or_refuse(bytes(data))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    _read_or_refuse(bytes(data))


_KEYS = st.text(max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "F4", ""]) | _JSON,
        "shape": st.lists(st.integers(-2, 2**50), max_size=4) | _JSON,
        "data_offsets": st.lists(st.integers(-2, 64), min_size=2, max_size=2) | _JSON,
    }
)


@given(st.dictionaries(st.text(max_size=8), _ENTRY | _JSON, max_size=4), st.binary(max_size=64))
def test_any_header_is_read_or_refused(header: dict[str, object], body: bytes) -> None:
    data = _file(header, body)
    _read_or_refuse(bytes(data))
