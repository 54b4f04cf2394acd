"""One spelling for every JSON value, so that equal content has equal bytes and one digest."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, cast

_MAX_DEPTH = 32


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8 in NFC; refuses what JSON cannot say (NaN, other types)."""
    text = json.dumps(
        _plain(value, 0), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def sha256_digest(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _plain(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number")
        # 2.0 and 2 are one number in JSON; one of the two spellings has to win.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value)
        text.encode()  # a lone surrogate is no text
        return text
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value)
        if not all(isinstance(key, str) for key in pairs):
            raise ValueError("keys of JSON objects are strings")
        return {_plain(key, depth): _plain(item, depth + 1) for key, item in pairs.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in cast("Iterable[Any]", value)]
    raise ValueError(f"{type(value).__name__} has no JSON form")
