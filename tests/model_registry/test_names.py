"""References and canonical JSON, over everything hypothesis thinks of."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_registry import AdapterManifest, AdapterRef
from model_registry.canonical import canonical_json
from model_registry.errors import InvalidReferenceError
from tests.model_registry.adapter_files import BASE

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
REFS = st.one_of(
    st.builds(AdapterRef, NAMES),
    st.builds(AdapterRef, NAMES, number=st.integers(1, 999_999_999)),
    st.builds(AdapterRef, NAMES, alias=NAMES),
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=15,
)
_SETTINGS = {"r": 1, "lora_alpha": 1, "target_modules": ["q"], "modules": 1, "max_rank": 1}


@given(REFS)
def test_a_reference_is_read_as_it_was_written(ref: AdapterRef) -> None:
    assert AdapterRef.parse(str(ref)) == ref
    assert AdapterRef.parse(f"models:/{ref}") == ref


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        ref = AdapterRef.parse(text)
    except InvalidReferenceError:
        return
    assert str(ref) in (text, text.removeprefix("models:/"))
    assert not set(ref.name) & set("/\\.@: ")


@given(_JSON)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    once = canonical_json(value)
    assert canonical_json(json.loads(once)) == once


def test_key_order_and_number_spelling_do_not_matter() -> None:
    assert canonical_json({"b": 2.0, "a": "é"}) == canonical_json({"a": "e\u0301", "b": 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": b""}, "\ud800"])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        canonical_json(value)


@given(st.dictionaries(_TEXT, _JSON, max_size=4), st.sampled_from(["bf16", "nf4"]))
def test_a_manifest_survives_its_own_json(record: dict[str, Any], precision: str) -> None:
    written = AdapterManifest.model_validate(
        {
            "files": {},
            "adapter": _SETTINGS,
            "base": BASE.model_dump(),
            "precision": precision,
            "prompt_format": "chat/1",
            "evaluation": record,
        }
    )
    manifest = AdapterManifest.model_validate_json(written.canonical())
    again = AdapterManifest.model_validate_json(manifest.canonical())
    assert again == manifest
    assert again.digest == manifest.digest == written.digest
