"""The registry's operations as a server offers them."""

import json
from pathlib import Path

import pytest

from model_registry import ModelRegistry, RegistrySnapshot
from model_registry.api import RegistryApi
from model_registry.errors import AliasConflictError, InvalidReferenceError, VersionDeletedError
from tests.model_registry.adapter_files import publish, write_adapter


@pytest.fixture
def api(registry: ModelRegistry, tmp_path: Path) -> RegistryApi:
    """Two versions of one adapter."""
    for number in (1, 2):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
    return RegistryApi(registry)


def test_a_snapshot_is_sent_once(api: RegistryApi) -> None:
    first = api.snapshot()
    assert api.snapshot(first.etag).not_modified
    snapshot = RegistrySnapshot.from_json(json.loads(json.dumps(first.body)))
    assert snapshot.resolve("mcq-vi").number == 2
    api.move_alias("mcq-vi", "production", {"version": 1}, if_match='"0"', actor="a")
    assert not api.snapshot(first.etag).not_modified


def test_an_alias_moves_only_with_the_tag_that_was_seen(api: RegistryApi) -> None:
    moved = api.move_alias(
        "mcq-vi", "production", {"version": 1, "reason": "ok"}, if_match='"0"', actor="alice"
    )
    assert moved.etag == '"1"'
    for tag in (None, '"0"', "*", "W/x"):
        with pytest.raises(AliasConflictError):
            api.move_alias("mcq-vi", "production", {"version": 2}, if_match=tag, actor="bob")
    seen = api.alias("mcq-vi", "production")
    assert seen.body["history"][0]["actor"] == "alice"
    api.move_alias("mcq-vi", "production", {"version": 2}, if_match=seen.etag, actor="bob")
    assert api.roll_back("mcq-vi", "production", reason="bad", actor="bob").body["version"] == 1
    api.remove_alias("mcq-vi", "production", if_match='"3"', actor="bob")
    assert [entry["actor"] for entry in api.audit(subject="mcq-vi@").body] == ["bob"] * 3 + [
        "alice"
    ]


@pytest.mark.parametrize("body", [{}, {"version": "1"}, {"version": True}, {"version": 0}])
def test_a_bad_body_is_refused(api: RegistryApi, body: dict[str, object]) -> None:
    with pytest.raises(InvalidReferenceError):
        api.move_alias("mcq-vi", "production", body, if_match='"0"', actor="a")


def test_adapters_and_versions_are_described(api: RegistryApi) -> None:
    assert api.adapters(limit=1).body["next"] == "mcq-vi"
    assert [version["version"] for version in api.adapter("mcq-vi").body["versions"]] == [2, 1]
    version = api.version("mcq-vi/1")
    assert version.body["variants"] == []
    assert api.version("mcq-vi/1", version.etag).not_modified
    api.delete("mcq-vi", 1, reason="", actor="a")
    with pytest.raises(VersionDeletedError):
        api.version("mcq-vi/1")
    assert api.restore("mcq-vi", 1, actor="a").body["status"] == "ready"
