"""Many processes write at once; every revision has one winner and nothing is lost."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from model_registry import ModelRegistry
from model_registry.errors import AliasConflictError
from model_registry.index.migrate import migrate
from tests.model_registry.adapter_files import publish, write_adapter
from tests.model_registry.processes import FORKED

WRITERS, MOVES = 16, 3


def _move(url: str, store: str | None, writer: int, start: Any) -> list[int]:
    """Move the alias a few times, always from where it was seen; returns the revisions won."""
    won: list[int] = []
    with ModelRegistry.open(url, store, actor=f"writer-{writer}") as registry:
        start.wait()
        while len(won) < MOVES:
            state = registry.alias_state("mcq-vi", "production")
            number = 1 if state.number == 2 else 2
            try:
                moved = registry.set_alias(
                    "mcq-vi", "production", number, expected_revision=state.revision
                )
            except AliasConflictError:
                continue
            won.append(moved.revision)
    return won


@pytest.mark.parametrize("where", ["directory", "postgresql"])
def test_sixteen_writers_never_share_a_revision(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, store = str(tmp_path / "registry"), None
    if where == "postgresql":
        url, store = request.getfixturevalue("postgres_url"), str(tmp_path / "store")
        (tmp_path / "store").mkdir()
        migrate(url)
    with ModelRegistry.open(url, store, cache_dir=tmp_path / "cache") as registry:
        for number in (1, 2):
            publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
        with FORKED.Manager() as manager, FORKED.Pool(WRITERS) as pool:
            start = manager.Barrier(WRITERS)
            jobs = [(url, store, writer, start) for writer in range(WRITERS)]
            won = sorted(itertools.chain(*pool.starmap(_move, jobs, chunksize=1)))
        assert won == list(range(1, WRITERS * MOVES + 1))
        history = registry.alias_history("mcq-vi", "production")
        assert [event.revision for event in reversed(history)] == won
        for newer, older in itertools.pairwise(history):
            assert newer.from_number == older.to_number
        assert registry.verify_audit() == len(won) + 2


def _publish_many(url: str, work: str, writer: int) -> list[tuple[int, str]]:
    with ModelRegistry.open(url) as registry:
        versions: list[tuple[int, str]] = []
        for fill in (1, 2, 10 + writer):
            adapter = write_adapter(Path(work) / f"{writer}-{fill}", bytes([fill]))
            version = publish(registry, adapter)
            versions.append((version.number, version.digest))
        return versions


def test_publishing_at_once_numbers_everything_once(tmp_path: Path) -> None:
    """Two adapters are pushed by everybody, one by each; the directory itself is new as well."""
    (tmp_path / "work").mkdir()
    jobs = [(str(tmp_path / "registry"), str(tmp_path / "work"), writer) for writer in range(4)]
    with FORKED.Pool(4) as pool:
        results = list(itertools.chain(*pool.starmap(_publish_many, jobs, chunksize=1)))
    assert len(set(results)) == 6
    with ModelRegistry.open(tmp_path / "registry") as registry:
        versions = registry.list_versions("mcq-vi")
        assert sorted(version.number for version in versions) == [1, 2, 3, 4, 5, 6]
        for version in versions:
            registry.verify(version.ref)
