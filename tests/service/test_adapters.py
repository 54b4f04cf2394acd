"""Adapters: which one answers, when it is loaded, and that one in use stays."""

import asyncio
from pathlib import Path

import pytest

from model_registry import AdapterVersion, ModelRegistry
from model_registry.follow import RegistryFollower
from service.adapters import AdapterCache
from service.errors import BackendOverloadedError
from service.metrics import Metrics
from tests.model_registry.adapter_files import BASE, write_adapter
from tests.service.conftest import Serving, until
from tests.service.scripted_backend import GatedBackend


def publish(registry: ModelRegistry, tmp_path: Path, name: str, fill: int) -> AdapterVersion:
    """A version whose weights are `fill`."""
    directory = write_adapter(tmp_path / f"{name}-{fill}", bytes([fill]))
    return registry.publish(
        name, directory, prompt_format="chat/1", base=BASE, precision="bf16", languages=("vi",)
    )


@pytest.fixture
def follower(registry: ModelRegistry) -> RegistryFollower:
    """Follows the test's registry."""
    opened = RegistryFollower(lambda: registry)
    opened.refresh()
    return opened


async def test_the_answer_names_the_exact_version(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    first = publish(registry, tmp_path, "lop-10", 1)
    second = publish(registry, tmp_path, "lop-10", 2)
    async with serving(default_adapter="lop-10/1") as client:

        async def used(name: str | None) -> object:
            asked = {"context": context_vi, "adapter": name}
            return (await client.post("/generate", json=asked)).json()["adapter"]

        assert await used(None) == {"name": "lop-10", "version": 1, "digest": first.digest}
        assert await used("lop-10") == {"name": "lop-10", "version": 2, "digest": second.digest}
        assert await used("base") is None


async def test_new_versions_and_moved_aliases_are_served_without_a_restart(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    publish(registry, tmp_path, "lop-10", 1)
    registry.set_alias("lop-10", "production", 1)
    async with serving() as client:

        async def version() -> int:
            asked = {"context": context_vi, "adapter": "lop-10"}
            return (await client.post("/generate", json=asked)).json()["adapter"]["version"]

        assert await version() == 1
        publish(registry, tmp_path, "lop-10", 2)
        registry.set_alias("lop-10", "production", 2)
        await until(lambda: _equals(version, 2))


async def _equals(call: object, wanted: object) -> bool:
    return await call() == wanted  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "code"),
    [("lop-11", "unknown-adapter"), ("lop-10/9", "unknown-version"),
     ("lop-10@canary", "unknown-alias")],
)  # fmt: skip
async def test_what_is_not_in_the_registry_is_a_404_problem(
    name: str,
    code: str,
    serving: Serving,
    registry: ModelRegistry,
    tmp_path: Path,
    context_vi: str,
) -> None:
    publish(registry, tmp_path, "lop-10", 1)
    async with serving() as client:
        answer = await client.post("/generate", json={"context": context_vi, "adapter": name})
    assert (answer.status_code, answer.json()["code"]) == (404, code)


async def test_adapters_are_listed_with_aliases_and_versions(
    serving: Serving, registry: ModelRegistry, tmp_path: Path, context_vi: str
) -> None:
    publish(registry, tmp_path, "lop-10", 1)
    publish(registry, tmp_path, "lop-10", 2)
    registry.set_alias("lop-10", "production", 1)
    async with serving() as client:
        await client.post("/generate", json={"context": context_vi, "adapter": "lop-10"})
        listed = (await client.get("/adapters")).json()
        one = (await client.get("/adapters/lop-10")).json()
        missing = await client.get("/adapters/lop-12")
    assert listed["adapters"] == [one]
    assert (one["latest"], one["aliases"]) == (2, {"production": 1})
    assert [(v["version"], v["servable"], v["loaded"]) for v in one["versions"]] == [
        (2, True, False), (1, True, True),
    ]  # fmt: skip
    assert missing.status_code == 404


async def test_requests_for_one_adapter_load_it_once(
    registry: ModelRegistry, follower: RegistryFollower, tmp_path: Path
) -> None:
    backend = GatedBackend()
    backend.gate.clear()
    cache = AdapterCache(backend, follower, Metrics(), max_adapters=2)
    version = publish(registry, tmp_path, "a", 1)

    async def use() -> str:
        async with cache.acquire(version) as files:
            return files.engine_name

    users = [asyncio.create_task(use()) for _ in range(5)]
    await asyncio.sleep(0.2)
    assert cache.loaded == frozenset()
    backend.gate.set()
    assert set(await asyncio.gather(*users)) == {version.engine_name}
    assert backend.loads == [version.engine_name]
    assert cache.loaded == {version.digest}


async def test_the_adapter_idle_longest_makes_room_and_one_in_use_stays(
    registry: ModelRegistry, follower: RegistryFollower, tmp_path: Path
) -> None:
    backend = GatedBackend()
    cache = AdapterCache(backend, follower, Metrics(), max_adapters=2)
    a, b, c = [publish(registry, tmp_path, name, i + 1) for i, name in enumerate("abc")]
    async with cache.acquire(a):
        async with cache.acquire(b):
            with pytest.raises(BackendOverloadedError):
                async with cache.acquire(c):
                    pass
        async with cache.acquire(c):
            assert cache.loaded == {a.digest, c.digest}
    assert backend.unloads == [b.digest]


async def test_a_cancelled_request_releases_its_adapter(
    registry: ModelRegistry, follower: RegistryFollower, tmp_path: Path
) -> None:
    backend = GatedBackend()
    backend.gate.clear()
    cache = AdapterCache(backend, follower, Metrics(), max_adapters=1)
    a, b = publish(registry, tmp_path, "a", 1), publish(registry, tmp_path, "b", 2)

    async def use(version: AdapterVersion) -> None:
        async with cache.acquire(version):
            await asyncio.sleep(0)

    first = asyncio.create_task(use(a))
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    backend.gate.set()
    await asyncio.wait_for(use(b), 2)
    assert cache.loaded == {b.digest}


async def test_a_failed_load_is_tried_again_by_the_next_request(
    registry: ModelRegistry, follower: RegistryFollower, tmp_path: Path
) -> None:
    class Flaky(GatedBackend):
        async def load_adapter(self, adapter: object) -> None:
            await super().load_adapter(adapter)  # type: ignore[arg-type]
            if len(self.loads) == 1:
                raise OSError("disk")

    backend = Flaky()
    cache = AdapterCache(backend, follower, Metrics(), max_adapters=1)
    version = publish(registry, tmp_path, "a", 1)
    with pytest.raises(OSError, match="disk"):
        async with cache.acquire(version):
            pass
    async with cache.acquire(version):
        assert cache.loaded == {version.digest}
