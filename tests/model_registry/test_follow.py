"""Readers keep up by themselves and outlive an outage."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry import ModelRegistry
from model_registry.errors import RegistryUnavailableError
from model_registry.follow import RegistryFollower
from model_registry.index.migrate import migrate
from tests.model_registry.adapter_files import publish, write_adapter
from tests.model_registry.processes import FORKED


def _until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def test_a_moved_alias_is_followed(registry: ModelRegistry, tmp_path: Path) -> None:
    publish(registry, write_adapter(tmp_path / "1", b"\x01"))
    publish(registry, write_adapter(tmp_path / "2", b"\x02"))
    registry.set_alias("mcq-vi", "production", 1)
    seen: list[int] = []
    follower = RegistryFollower(
        lambda: ModelRegistry.open(tmp_path / "registry"),
        interval_s=0.05,
        on_change=lambda snapshot: seen.append(snapshot.resolve("mcq-vi").number),
    ).start()
    try:
        held = follower.snapshot
        registry.set_alias("mcq-vi", "production", 2)
        _until(lambda: follower.snapshot.resolve("mcq-vi").number == 2)
        assert held.resolve("mcq-vi").number == 1
        assert follower.age_s is not None
        assert follower.age_s < 5
    finally:
        follower.stop()
    assert seen == [1, 2]


def test_an_outage_leaves_the_last_known_snapshot(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    version = publish(registry, adapter)
    state = tmp_path / "state" / "snapshot.json"

    def open_registry() -> ModelRegistry:
        return ModelRegistry.open(tmp_path / "registry")

    follower = RegistryFollower(open_registry, state_file=state, interval_s=0.05).start()
    files = registry.fetch(version)
    index = tmp_path / "registry" / "registry.sqlite"
    index.rename(tmp_path / "away")
    index.mkdir()  # opening it fails, as a server that is gone
    try:
        restarted = RegistryFollower(open_registry, state_file=state, interval_s=0.05).start()
        assert restarted.error is not None
        assert restarted.age_s is None
        assert restarted.snapshot.resolve("mcq-vi") == version
        index.rmdir()
        (tmp_path / "away").rename(index)
        _until(lambda: restarted.error is None)
        assert restarted.fetch(restarted.snapshot.resolve("mcq-vi")) == files
        restarted.stop()
    finally:
        follower.stop()


def test_without_registry_and_snapshot_there_is_no_start(tmp_path: Path) -> None:
    def fail() -> ModelRegistry:
        raise RegistryUnavailableError("The index", "down")

    (tmp_path / "state.json").write_text('{"format_version": 1}')
    for state in (None, tmp_path / "none.json", tmp_path / "state.json"):
        with pytest.raises(RegistryUnavailableError, match="down"):
            RegistryFollower(fail, state_file=state).start()


def _push_elsewhere(postgres_url: str, store: str, environment: dict[str, str], work: str) -> None:
    os.environ.update(environment)
    with ModelRegistry.open(postgres_url, store, cache_dir=Path(work) / "c") as registry:
        version = publish(registry, write_adapter(Path(work) / "adapter"))
        registry.set_alias(version.name, "production", version.number)


def test_another_process_serves_a_push_within_five_seconds_on_servers(
    postgres_url: str, s3_url: str, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    migrate(postgres_url)
    follower = RegistryFollower(
        lambda: ModelRegistry.open(postgres_url, s3_url, cache_dir=tmp_path / "cache"),
        interval_s=2,
    ).start()
    arguments = (postgres_url, s3_url, s3_environment, str(tmp_path))
    process = FORKED.Process(target=_push_elsewhere, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    try:
        _until(lambda: "mcq-vi" in follower.snapshot.aliases, seconds=5)
        files = follower.fetch(follower.snapshot.resolve("mcq-vi@production"))
        assert (files / "adapter_model.safetensors").is_file()
    finally:
        follower.stop()
