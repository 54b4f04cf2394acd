"""Publish, resolve, alias, fetch, verify: the registry in a plain directory."""

import json
from pathlib import Path

import pytest

from model_registry import AdapterRef, ModelRegistry
from model_registry.errors import (
    AdapterNotFoundError,
    AliasConflictError,
    AliasNotFoundError,
    BaseMismatchError,
    CorruptArtifactError,
    InvalidAdapterError,
    InvalidReferenceError,
    PrecisionMismatchError,
    RegistryUnavailableError,
    VersionNotFoundError,
)
from tests.model_registry.adapter_files import BASE, publish, write_adapter, write_base


def test_publishing_again_returns_the_same_version(registry: ModelRegistry, adapter: Path) -> None:
    first = publish(registry, adapter)
    assert publish(registry, adapter) == first
    assert (first.name, first.number) == ("mcq-vi", 1)
    assert first.engine_name == f"mcq-vi-v1-{first.digest[7:19]}"
    assert len(registry.list_versions("mcq-vi")) == 1


def test_equal_content_has_an_equal_digest_in_every_registry(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "a", target_modules=["q_proj", "up_proj"])
    b = write_adapter(
        tmp_path / "b", target_modules=["up_proj", "q_proj"], base_model_name_or_path="/x/tiny"
    )
    first = publish(ModelRegistry.open(tmp_path / "one"), a)
    second = publish(ModelRegistry.open(f"file://{tmp_path}/two"), b, name="other")
    assert first.digest == second.digest


def test_any_changed_fact_is_another_version(registry: ModelRegistry, adapter: Path) -> None:
    versions = [
        publish(registry, adapter),
        publish(registry, adapter, prompt_format="instruct-vi/1"),
        publish(registry, adapter, precision="nf4", quantization={"type": "nf4"}),
        publish(registry, adapter, evaluation={"valid": 0.9}),
        publish(registry, adapter, training={"seed": 1}),
    ]
    assert [version.number for version in versions] == [1, 2, 3, 4, 5]
    assert len({version.digest for version in versions}) == 5


def test_every_spelling_resolves(registry: ModelRegistry, tmp_path: Path) -> None:
    first = publish(registry, write_adapter(tmp_path / "1", b"\x01"))
    second = publish(registry, write_adapter(tmp_path / "2", b"\x02"))
    assert registry.resolve("mcq-vi") == second
    registry.set_alias("mcq-vi", "production", 1)
    registry.set_alias("mcq-vi", "canary", 2)
    for subject in (registry, registry.snapshot()):
        assert subject.resolve("mcq-vi") == first
        assert subject.resolve("mcq-vi/2") == second
        assert subject.resolve("mcq-vi@canary") == second
        assert subject.resolve("models:/mcq-vi@production") == first
        assert subject.resolve("models:/mcq-vi/2") == second
        assert subject.resolve(first.digest) == first
        assert subject.resolve(AdapterRef("mcq-vi", alias="canary")) == second


def test_what_is_not_there_is_named(registry: ModelRegistry, adapter: Path) -> None:
    publish(registry, adapter)
    for subject in (registry, registry.snapshot()):
        with pytest.raises(AdapterNotFoundError, match="'other'"):
            subject.resolve("other")
        with pytest.raises(AdapterNotFoundError, match="'other'"):
            subject.resolve("other@production")
        with pytest.raises(VersionNotFoundError, match="version 7"):
            subject.resolve("mcq-vi/7")
        with pytest.raises(AliasNotFoundError, match="'canary'"):
            subject.resolve("mcq-vi@canary")
        with pytest.raises(VersionNotFoundError):
            subject.resolve("sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "text",
    ["", "A", "a b", "-a", "a-", "a/0", "a/01", "a/x", "a@", "@b", "a@b@c", "a/1/2", "../a",
     "a" * 41, "models:/", "models:/../x", "sha256:12", "a@B", "ä", "a\n", "a/1\n",
     "a/" + "9" * 10],
)  # fmt: skip
def test_other_texts_are_no_references(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        AdapterRef.parse(text)


def test_aliases_move_only_from_where_the_caller_saw_them(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
    first = registry.set_alias("mcq-vi", "production", 1, expected=0)
    second = registry.set_alias("mcq-vi", "production", 2, expected=1, reason="better")
    assert (first.revision, second.revision) == (1, 2)
    with pytest.raises(AliasConflictError):
        registry.set_alias("mcq-vi", "production", 3, expected=1)
    with pytest.raises(AliasConflictError):
        registry.set_alias("mcq-vi", "production", 3, expected_revision=1)
    registry.set_alias("mcq-vi", "production", 3, expected_revision=2)
    assert registry.resolve("mcq-vi@production").number == 3
    with pytest.raises(VersionNotFoundError):
        registry.set_alias("mcq-vi", "production", 9)


def test_rollback_goes_back_step_by_step(registry: ModelRegistry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
        registry.set_alias("mcq-vi", "production", number, reason=f"step {number}")
    assert registry.rollback_alias("mcq-vi", "production").number == 2
    assert registry.rollback_alias("mcq-vi", "production", reason="still bad").number == 1
    history = registry.alias_history("mcq-vi", "production")
    assert [(e.from_number, e.to_number, e.kind) for e in history] == [
        (2, 1, "rollback"), (3, 2, "rollback"), (2, 3, "move"), (1, 2, "move"), (None, 1, "move"),
    ]  # fmt: skip
    assert history[0].reason == "still bad"
    assert history[0].actor == "tester"


def test_a_removed_alias_is_gone_and_its_history_is_not(
    registry: ModelRegistry, adapter: Path
) -> None:
    publish(registry, adapter)
    registry.set_alias("mcq-vi", "canary", 1)
    before = registry.snapshot()
    registry.remove_alias("mcq-vi", "canary")
    for subject in (registry, registry.snapshot(), registry.snapshot(before)):
        with pytest.raises(AliasNotFoundError):
            subject.resolve("mcq-vi@canary")
    assert len(registry.alias_history("mcq-vi", "canary")) == 2
    assert before.resolve("mcq-vi@canary").number == 1


def test_fetched_files_are_peft_layout_and_read_only(
    registry: ModelRegistry, adapter: Path
) -> None:
    directory = registry.fetch(publish(registry, adapter))
    assert {item.name for item in directory.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert (directory / "adapter_model.safetensors").stat().st_mode & 0o222 == 0
    original = (adapter / "adapter_model.safetensors").read_bytes()
    assert (directory / "adapter_model.safetensors").read_bytes() == original
    assert json.loads((directory / "adapter_config.json").read_text())["r"] == 2


def test_a_damaged_cache_is_replaced(registry: ModelRegistry, adapter: Path) -> None:
    version = publish(registry, adapter)
    file = registry.fetch(version) / "adapter_model.safetensors"
    data = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(data[:-1] + b"\x07")
    assert (registry.fetch(version) / "adapter_model.safetensors").read_bytes() == data
    file.unlink()
    assert (registry.fetch(version) / "adapter_model.safetensors").read_bytes() == data


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_store_is_noticed(
    registry: ModelRegistry, adapter: Path, tmp_path: Path, damage: str
) -> None:
    version = publish(registry, adapter)
    digest = version.manifest.files["adapter_model.safetensors"].sha256
    blob = tmp_path / "registry" / "blobs" / "sha256" / digest[:2] / digest
    data = blob.read_bytes()
    if damage == "remove":
        blob.unlink()
    else:
        blob.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"\x07")
    with pytest.raises(CorruptArtifactError):
        registry.verify("mcq-vi/1")
    with pytest.raises(CorruptArtifactError):
        registry.fetch(version)
    assert [item.name for item in (tmp_path / "registry" / "cache").iterdir()] == ["staging"]


def test_verify_reads_the_manifest_from_both_places(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    version = publish(registry, adapter)
    assert registry.verify("mcq-vi/1") == version
    path = tmp_path / "registry" / "manifests" / "sha256" / f"{version.digest[7:]}.json"
    path.write_bytes(path.read_bytes().replace(b"chat/1", b"chat/2"))
    with pytest.raises(CorruptArtifactError):
        registry.verify("mcq-vi/1")


def test_an_adapter_stays_with_its_base_and_precision(
    registry: ModelRegistry, adapter: Path
) -> None:
    version = publish(registry, adapter, precision="nf4")
    version.check_base(BASE, "nf4")
    version.check_base(BASE, "dequantized")
    with pytest.raises(PrecisionMismatchError):
        version.check_base(BASE, "bf16")
    other = BASE.model_copy(update={"weights": "sha256:" + "f" * 64})
    with pytest.raises(BaseMismatchError, match="weights"):
        version.check_base(other)


def test_snapshots_are_shared_while_nothing_changes(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    publish(registry, write_adapter(tmp_path / "1", b"\x01"))
    first = registry.snapshot()
    first.resolve("mcq-vi/1")
    assert registry.snapshot(first) is first
    publish(registry, write_adapter(tmp_path / "2", b"\x02"))
    second = registry.snapshot(first)
    assert [adapter.latest for adapter in second.adapters] == [2]
    assert second.resolve("mcq-vi/1") is first.resolve("mcq-vi/1")
    assert first.resolve("mcq-vi").number == 1
    assert type(second).from_json(json.loads(json.dumps(second.to_json()))) == second


def test_an_exported_version_is_imported_with_its_digest_number_and_alias(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    publish(registry, write_adapter(tmp_path / "1", b"\x01"))
    version = publish(registry, write_adapter(tmp_path / "2", b"\x02"), description="second")
    registry.set_alias("mcq-vi", "production", 2)
    registry.export_directory("mcq-vi@production", tmp_path / "out")
    other = ModelRegistry.open(tmp_path / "other")
    imported = other.import_directory(
        tmp_path / "out", base_directory=write_base(tmp_path / "base")
    )
    assert (imported.digest, imported.number) == (version.digest, 2)
    assert imported.description == "second"
    assert other.resolve("mcq-vi@production") == imported
    assert other.import_directory(tmp_path / "out") == imported
    assert len(other.alias_history("mcq-vi", "production")) == 1


def test_an_import_that_does_not_fit_its_record_is_refused(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    publish(registry, adapter)
    registry.export_directory("mcq-vi", tmp_path / "out")
    weights = tmp_path / "out" / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(data[:-1] + b"\x07")
    other = ModelRegistry.open(tmp_path / "other")
    with pytest.raises(InvalidAdapterError, match="wrong_digest"):
        other.import_directory(tmp_path / "out")
    weights.write_bytes(data)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"chat/1", b"chat/2"))
    with pytest.raises(InvalidAdapterError, match="wrong_digest"):
        other.import_directory(tmp_path / "out")
    assert other.list_adapters() == ()


def test_pages_of_adapters_follow_each_other(registry: ModelRegistry, adapter: Path) -> None:
    for name in ("a", "b", "c"):
        publish(registry, adapter, name=name)
    first = registry.list_adapters(limit=2)
    second = registry.list_adapters(limit=2, after=first[-1].name)
    assert [summary.name for summary in first + second] == ["a", "b", "c"]


def test_a_registry_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryUnavailableError):
        ModelRegistry.open(tmp_path / "file" / "registry")
    with pytest.raises(RegistryUnavailableError, match="--store"):
        ModelRegistry.open("postgresql://user:secret@127.0.0.1:1/none")
