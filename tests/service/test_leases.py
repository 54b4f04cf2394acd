"""Leases: the registry knows what a replica has loaded, and lets nobody take it away."""

import asyncio
from pathlib import Path

import pytest

from model_registry import AdapterVersion, ModelRegistry
from model_registry.errors import VersionInUseError
from model_registry.follow import RegistryFollower
from service import leases
from service.leases import LeaseKeeper
from tests.service.conftest import Serving, until
from tests.service.test_adapters import publish


async def test_a_loaded_version_is_leased_until_the_service_stops(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    publish(registry, tmp_path, "lop-10", 1)
    publish(registry, tmp_path, "lop-10", 2)

    async def is_leased() -> bool:
        return bool(registry.leases())

    async with serving() as client:
        await client.post("/generate", json={"context": context_vi, "adapter": "lop-10/1"})
        await until(is_leased)
        (lease,) = (await client.get("/registry/adapters/lop-10")).json()["leases"]
        with pytest.raises(VersionInUseError, match="replica"):
            registry.delete("lop-10/1")
        registry.delete("lop-10/2")
    assert (lease["version"], bool(lease["replica"])) == (1, True)
    assert registry.leases() == ()
    registry.delete("lop-10/1")


async def test_leases_are_renewed_before_they_end(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEWAL_S", 0.05)
    version = publish(registry, tmp_path, "lop-10", 1)
    keeper = _keeper(registry, version)
    running = asyncio.create_task(keeper.run())

    async def has_lease() -> bool:
        return bool(registry.leases())

    await until(has_lease)
    first = registry.leases()[0].expires_at

    async def is_renewed() -> bool:
        return registry.leases()[0].expires_at > first

    await until(is_renewed)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_outage_is_said_once_and_serving_goes_on(
    registry: ModelRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(leases, "_RENEWAL_S", 0.1)
    version = publish(registry, tmp_path, "lop-10", 1)
    index = tmp_path / "registry" / "registry.sqlite"
    registry.close()
    index.rename(index.with_suffix(".away"))
    keeper = _keeper(registry, version)
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.3)
    index.unlink(missing_ok=True)
    registry.close()
    index.with_suffix(".away").rename(index)

    async def has_lease() -> bool:
        return bool(registry.leases())

    await until(has_lease)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    said = [r for r in caplog.records if (r.name, r.levelname) == ("mcq.leases", "WARNING")]
    assert len(said) == 1


def _keeper(registry: ModelRegistry, *held: AdapterVersion) -> LeaseKeeper:
    follower = RegistryFollower(lambda: registry)
    follower.refresh()
    return LeaseKeeper(follower, lambda: held, interval_s=0.02)
