"""Killed at every step, a registry is in the old state or in the new one, and carries on."""

import shutil
from pathlib import Path

import pytest

from benchmarks.registry_merge import write_random_adapter
from model_registry import ModelRegistry
from model_registry.bases import fingerprint_of
from model_registry.bases.tiny import write_tiny_model
from tests.model_registry.adapter_files import publish, write_adapter
from tests.model_registry.killed import run, run_killed
from tests.model_registry.processes import FORKED


def _prepare(directory: Path) -> None:
    with ModelRegistry.open(directory / "registry", actor="tester") as registry:
        for number in (1, 2, 3):
            publish(registry, write_adapter(directory / str(number), bytes([number])))
        registry.set_alias("mcq-vi", "production", 1)
        registry.delete("mcq-vi/3")
    write_adapter(directory / "new", b"\x09")


def _state(directory: Path) -> tuple[object, ...]:
    """What a reader sees, after everything it sees was read and hashed."""
    with ModelRegistry.open(directory / "registry", actor="tester") as registry:
        versions = registry.list_versions("mcq-vi")
        for version in versions:
            if version.status == "ready":
                registry.verify(version.ref)
        registry.verify_audit()
        return (
            tuple((version.number, version.digest, version.status) for version in versions),
            registry.aliases("mcq-vi"),
            tuple(variant.digest for variant in registry.variants("mcq-vi/1")),
        )


def _run_killed(operation: str, count: int, directory: Path) -> int:
    process = FORKED.Process(target=run_killed, args=(operation, count, directory))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode


def _check(operation: str, prepared: Path, most: int) -> None:
    old = _state(prepared)
    finished = prepared.with_name("finished")
    shutil.copytree(prepared, finished)
    run(operation, finished)
    new = _state(finished)
    for count in range(most):
        directory = prepared.with_name(f"killed-{count}")
        shutil.copytree(prepared, directory)
        ended = _run_killed(operation, count, directory)
        assert _state(directory) in (old, new), f"killed before effect {count}"
        run(operation, directory)
        assert _state(directory) == new
        with ModelRegistry.open(directory / "registry") as registry:
            registry.collect_garbage(grace_s=0)
        _state(directory)
        shutil.rmtree(directory)
        if ended == 0:
            return
    pytest.fail("it has more steps than expected")


@pytest.mark.parametrize("operation", ["publish", "alias", "gc", "fetch"])
def test_a_kill_at_any_step_leaves_old_or_new(operation: str, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    _prepare(prepared)
    _check(operation, prepared, most=40)


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_merge_leaves_old_or_new(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    base = write_tiny_model(prepared / "base")
    adapter = write_random_adapter(base, prepared / "adapter")
    with ModelRegistry.open(prepared / "registry") as registry:
        publish(registry, adapter, base=fingerprint_of(base), base_directory=base)
    _check("merge", prepared, most=80)
