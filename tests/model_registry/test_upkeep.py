"""Gates, deletion, garbage, pins, leases, the audit log, signatures."""

import os
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from model_registry import ModelRegistry
from model_registry.blobs import BlobStore
from model_registry.errors import (
    AdapterNotFoundError,
    CorruptArtifactError,
    GateRefusedError,
    InvalidReferenceError,
    RegistryUnavailableError,
    SignatureError,
    VersionDeletedError,
    VersionInUseError,
)
from model_registry.signing import create_key
from tests.model_registry.adapter_files import publish, write_adapter

RULES = {"thresholds": {"unconstrained.valid.share": {"min": 0.9}, "flaws": {"max": 2}}}


def _evaluated(share: float, flaws: int = 0) -> dict[str, object]:
    return {"unconstrained": {"valid": {"share": share}}, "flaws": flaws}


def _objects(registry: ModelRegistry) -> set[str]:
    blobs: BlobStore = registry.blobs
    return {item.digest for item in [*blobs.list_blobs(), *blobs.list_manifests()]}


def test_a_gate_lets_only_good_enough_versions_pass(registry: ModelRegistry, adapter: Path) -> None:
    publish(registry, adapter)
    publish(registry, adapter, evaluation=_evaluated(0.8))
    publish(registry, adapter, evaluation=_evaluated(0.95, flaws=3))
    publish(registry, adapter, evaluation=_evaluated(0.95))
    publish(registry, adapter, evaluation={"flaws": True})
    registry.set_gate("*", "production", RULES)
    expected = {
        1: ("it has no evaluation record",),
        2: ("unconstrained.valid.share is 0.8, at least 0.9 is asked for",),
        3: ("flaws is 3, at most 2 is allowed",),
        5: (
            "its evaluation has no figure unconstrained.valid.share",
            "its evaluation has no figure flaws",
        ),
    }
    for number, failures in expected.items():
        with pytest.raises(GateRefusedError) as refusal:
            registry.set_alias("mcq-vi", "production", number)
        assert refusal.value.failures == failures
    registry.set_alias("mcq-vi", "production", 4)
    registry.set_alias("mcq-vi", "canary", 1)
    registry.set_gate("mcq-vi", "production", {"require_evaluation": False})
    registry.set_alias("mcq-vi", "production", 2)


def test_a_rollback_passes_a_gate_that_came_later(registry: ModelRegistry, adapter: Path) -> None:
    publish(registry, adapter)
    publish(registry, adapter, evaluation=_evaluated(1))
    registry.set_alias("mcq-vi", "production", 1)
    registry.set_alias("mcq-vi", "production", 2)
    registry.set_gate("mcq-vi", "production", RULES)
    assert registry.rollback_alias("mcq-vi", "production").number == 1


def test_bad_rules_are_refused(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidReferenceError):
        registry.set_gate("mcq-vi", "production", {"thresholds": {"a": {"least": 1}}})


def test_a_version_in_use_is_not_deleted(registry: ModelRegistry, adapter: Path) -> None:
    version = publish(registry, adapter)
    registry.set_alias("mcq-vi", "canary", 1)
    registry.pin("mcq-vi/1", "paper")
    registry.renew_leases("pod-1", [version])
    with pytest.raises(VersionInUseError) as refusal:
        registry.delete("mcq-vi/1")
    assert refusal.value.holders == ("alias canary", "pin 'paper'", "replica pod-1")
    registry.remove_alias("mcq-vi", "canary")
    registry.unpin("mcq-vi/1", "paper")
    registry.renew_leases("pod-1", [])
    registry.delete("mcq-vi/1", reason="bad data")
    for subject in (registry, registry.snapshot()):
        with pytest.raises(VersionDeletedError):
            subject.resolve("mcq-vi/1")
        with pytest.raises(AdapterNotFoundError):
            subject.resolve("mcq-vi")
    with pytest.raises(VersionDeletedError):
        publish(registry, adapter)
    with pytest.raises(VersionDeletedError):
        registry.set_alias("mcq-vi", "canary", 1)
    assert registry.restore("mcq-vi/1") == version
    assert publish(registry, adapter) == version


def test_leases_end_by_themselves(registry: ModelRegistry, adapter: Path) -> None:
    version = publish(registry, adapter)
    before = registry.snapshot()
    registry.renew_leases("pod-1", [version], ttl_s=60)
    registry.renew_leases("pod-2", [version], ttl_s=-1)
    assert [lease.replica for lease in registry.leases("mcq-vi")] == ["pod-1"]
    assert registry.snapshot(before) is before


def test_garbage_goes_after_its_grace(registry: ModelRegistry, tmp_path: Path) -> None:
    kept = publish(registry, write_adapter(tmp_path / "1", b"\x01"))
    gone = publish(registry, write_adapter(tmp_path / "2", b"\x02"))
    copy = registry.fetch(gone)
    registry.delete("mcq-vi/2")
    before = _objects(registry)
    assert registry.collect_garbage().to_json()["objects"] == 0
    assert _objects(registry) == before
    dry = registry.collect_garbage(grace_s=0, dry_run=True)
    assert (dry.purged, _objects(registry)) == (["mcq-vi/2"], before)
    report = registry.collect_garbage(grace_s=0)
    assert report.purged == ["mcq-vi/2"]
    assert report.objects == 2
    assert not copy.exists()
    assert _objects(registry) == {
        kept.digest,
        *(entry.sha256 for entry in kept.manifest.files.values()),
    }
    registry.verify("mcq-vi/1")
    with pytest.raises(CorruptArtifactError, match="revive"):
        registry.restore("mcq-vi/2")
    again = publish(registry, tmp_path / "2", revive=True)
    assert (again.number, again.digest) == (2, gone.digest)
    registry.verify("mcq-vi/2")


def test_content_under_another_name_stays(registry: ModelRegistry, adapter: Path) -> None:
    publish(registry, adapter, name="one")
    publish(registry, adapter, name="two")
    registry.delete("one/1")
    registry.collect_garbage(grace_s=0)
    registry.verify("two/1")


def test_only_the_last_versions_are_kept_when_asked(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    for number in range(1, 6):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
    registry.set_alias("mcq-vi", "production", 1)
    registry.pin("mcq-vi/2", "paper")
    assert registry.collect_garbage(keep_last=2).deleted == ["mcq-vi/3"]
    states = {version.number: version.status for version in registry.list_versions("mcq-vi")}
    assert states == {1: "ready", 2: "ready", 3: "deleted", 4: "ready", 5: "ready"}


def test_leftovers_of_killed_processes_are_swept(registry: ModelRegistry, tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"left over")
    registry.blobs.put_file("ab" + "0" * 62, file)
    stage = tmp_path / "registry" / "cache" / "staging" / "stage-x"
    stage.mkdir(parents=True)
    os.utime(stage, (0, 0))
    report = registry.collect_garbage(grace_s=0)
    assert (report.objects, report.bytes_, report.folders) == (1, 9, 1)
    assert _objects(registry) == set()


def test_publishing_and_collecting_at_once_loses_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    url = tmp_path / "registry"
    ModelRegistry.open(url).close()
    errors: list[BaseException] = []

    def sweep() -> None:
        with ModelRegistry.open(url, actor="gc") as registry:
            while not stop.is_set():
                try:
                    registry.collect_garbage(grace_s=0)
                except BaseException as error:
                    errors.append(error)

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        with ModelRegistry.open(url) as registry:
            for number in range(1, 12):
                adapter = write_adapter(tmp_path / "adapter", bytes([number]))
                version = publish(registry, adapter)
                registry.verify(version.ref)
                if number % 2:
                    registry.delete(version.ref)
    finally:
        stop.set()
        thread.join(timeout=60)
    assert errors == []


def test_the_audit_log_shows_everything_and_cannot_be_edited(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    publish(registry, adapter)
    registry.set_alias("mcq-vi", "production", 1, reason="first", actor="alice")
    registry.remove_alias("mcq-vi", "production")
    registry.delete("mcq-vi/1")
    entries = registry.audit()
    assert [(entry.actor, entry.action) for entry in reversed(entries)] == [
        ("tester", "publish"), ("alice", "alias"), ("tester", "alias"), ("tester", "delete"),
    ]  # fmt: skip
    assert registry.audit(subject="mcq-vi@")[-1].detail["reason"] == "first"
    assert registry.verify_audit() == 4
    engine = sa.create_engine(f"sqlite:///{tmp_path}/registry/registry.sqlite")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE audit SET actor = 'bob' WHERE actor = 'alice'"))
    engine.dispose()
    with pytest.raises(CorruptArtifactError, match="line 2"):
        registry.verify_audit()


def test_a_reader_that_trusts_keys_takes_only_signed_versions(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    identity = create_key(keys / "release.pem")
    assert (keys / "release.pem").stat().st_mode & 0o077 == 0
    create_key(tmp_path / "other.pem")
    version = publish(registry, adapter)
    reader = ModelRegistry.open(tmp_path / "registry", trusted_keys=keys / "release.pub.pem")
    with pytest.raises(SignatureError, match="no trusted key"):
        reader.verify("mcq-vi/1")
    with pytest.raises(SignatureError, match="no trusted key"):
        reader.fetch(version)
    registry.sign("mcq-vi/1", tmp_path / "other.pem")
    with pytest.raises(SignatureError):
        reader.fetch(version)
    registry.sign("mcq-vi/1", keys / "release.pem")
    assert reader.check_signature(reader.verify("mcq-vi/1")) == identity
    reader.fetch(version)
    registry.set_gate(
        "mcq-vi", "production", {"require_evaluation": False, "require_signature": True}
    )
    registry.set_alias("mcq-vi", "production", 1)

    registry.export_directory("mcq-vi/1", tmp_path / "out")
    strict = ModelRegistry.open(tmp_path / "strict", trusted_keys=keys / "release.pub.pem")
    assert strict.fetch(strict.import_directory(tmp_path / "out")).is_dir()
    record = tmp_path / "out" / "record.json"
    record.write_text(record.read_text().replace(identity, "0" * 16))
    stricter = ModelRegistry.open(tmp_path / "stricter", trusted_keys=keys / "release.pub.pem")
    with pytest.raises(SignatureError):
        stricter.import_directory(tmp_path / "out")


def test_a_forged_signature_is_noticed(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    create_key(tmp_path / "key.pem")
    version = publish(registry, adapter)
    registry.sign("mcq-vi/1", tmp_path / "key.pem")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/registry/registry.sqlite")
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE signature SET signature = '{'00' * 64}'"))
    engine.dispose()
    reader = ModelRegistry.open(tmp_path / "registry", trusted_keys=tmp_path / "key.pub.pem")
    with pytest.raises(SignatureError, match="does not fit"):
        reader.fetch(version)


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text(
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    )
    for path in (tmp_path / "bad.pem", tmp_path / "none.pem"):
        with pytest.raises(SignatureError):
            ModelRegistry.open(tmp_path / "registry", trusted_keys=path)
    with pytest.raises(SignatureError):
        create_key(tmp_path / "bad.pem")


def test_an_unwritable_store_changes_nothing(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "registry" / "blobs").write_text("in the way")
    with pytest.raises(RegistryUnavailableError):
        publish(registry, adapter)
    assert registry.list_adapters() == ()
