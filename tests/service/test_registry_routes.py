"""The registry over HTTP: read by anybody, changed by who has the admin token."""

from pathlib import Path

import httpx
import pytest

from model_registry import ModelRegistry, RegistrySnapshot
from tests.service.conftest import Serving
from tests.service.test_adapters import publish

TOKEN = "a-long-enough-token"
ADMIN = {"Authorization": f"Bearer {TOKEN}", "X-Actor": "lan"}
ALIAS = "/registry/adapters/lop-10/aliases/production"
WRITES = [
    ("PUT", ALIAS),
    ("DELETE", ALIAS),
    ("POST", f"{ALIAS}/rollback"),
    ("DELETE", "/registry/adapters/lop-10/versions/1"),
    ("POST", "/registry/adapters/lop-10/versions/1/restore"),
    ("GET", "/registry/audit"),
]


@pytest.fixture
def filled(registry: ModelRegistry, tmp_path: Path) -> ModelRegistry:
    """Two versions, the first in production."""
    for fill in (1, 2):
        publish(registry, tmp_path, "lop-10", fill)
    registry.set_alias("lop-10", "production", 1, reason="good")
    return registry


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_the_snapshot_is_sent_once_and_resolves_names(
    serving: Serving, filled: ModelRegistry
) -> None:
    async with serving() as client:
        first = await client.get("/registry/snapshot")
        tag = {"If-None-Match": first.headers["etag"]}
        again = await client.get("/registry/snapshot", headers=tag)
        filled.set_alias("lop-10", "production", 2)
        moved = await client.get("/registry/snapshot", headers=tag)
    assert RegistrySnapshot.from_json(first.json()).resolve("lop-10").number == 1
    assert (again.status_code, again.content) == (304, b"")
    assert RegistrySnapshot.from_json(moved.json()).resolve("lop-10").number == 2


async def test_adapters_versions_and_aliases_are_described(
    serving: Serving, filled: ModelRegistry
) -> None:
    async with serving() as client:
        page = (await client.get("/registry/adapters", params={"limit": 1})).json()
        adapter = (await client.get("/registry/adapters/lop-10")).json()
        version = await client.get("/registry/adapters/lop-10/versions/2")
        tag = {"If-None-Match": version.headers["etag"]}
        unchanged = await client.get("/registry/adapters/lop-10/versions/2", headers=tag)
        alias = await client.get(ALIAS)
        differ = (await client.get("/registry/adapters/lop-10/diff?one=1&other=2")).json()
    assert [item["name"] for item in page["adapters"]] == ["lop-10"]
    assert [item["version"] for item in adapter["versions"]] == [2, 1]
    assert version.json()["variants"] == []
    assert unchanged.status_code == 304
    assert alias.headers["etag"] == '"1"'
    assert [move["reason"] for move in alias.json()["history"]] == ["good"]
    assert list(differ) == ["files.adapter_model.safetensors.sha256"]


async def test_what_is_missing_or_asked_wrongly_is_a_problem(
    serving: Serving, filled: ModelRegistry
) -> None:
    async with serving() as client:
        assert code(await client.get("/registry/adapters/x")) == (404, "unknown-adapter")
        missing = await client.get("/registry/adapters/lop-10/versions/9")
        assert code(missing) == (404, "unknown-version")
        wrong = await client.get("/registry/adapters", params={"limit": 0})
        assert code(wrong) == (400, "invalid-request")


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_without_the_admin_token_nothing_changes(
    serving: Serving, filled: ModelRegistry, method: str, path: str
) -> None:
    async with serving() as client:
        off = await client.request(method, path, headers=ADMIN, json={"version": 2})
    async with serving(admin_token=TOKEN) as client:
        answers = [
            await client.request(method, path, headers=headers, json={"version": 2})
            for headers in ({}, {"Authorization": "Bearer of-another-token"},
                            {"Authorization": f"Basic {TOKEN}"})
        ]  # fmt: skip
    assert code(off) == (403, "admin-disabled")
    assert [code(answer) for answer in answers] == [(401, "admin-required")] * 3
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert filled.aliases("lop-10") == {"production": 1}
    assert len(filled.list_versions("lop-10")) == 2


async def test_an_alias_is_moved_and_rolled_back_and_the_history_says_by_whom(
    serving: Serving, filled: ModelRegistry
) -> None:
    async with serving(admin_token=TOKEN) as client:
        tag = {"If-Match": (await client.get(ALIAS)).headers["etag"]}
        body = {"version": 2, "reason": "better"}
        moved = await client.put(ALIAS, json=body, headers=ADMIN | tag)
        late = await client.put(ALIAS, json=body, headers=ADMIN | tag)
        bad = await client.put(ALIAS, json={"version": 0}, headers=ADMIN | tag)
        assert filled.aliases("lop-10") == {"production": 2}
        back = await client.post(f"{ALIAS}/rollback", json={"reason": "worse"}, headers=ADMIN)
        history = (await client.get(ALIAS)).json()["history"]
        audit = (await client.get("/registry/audit?limit=1", headers=ADMIN)).json()
    assert (moved.json()["version"], moved.headers["etag"]) == (2, '"2"')
    assert code(late) == (412, "alias-conflict")
    assert code(bad) == (400, "invalid-request")
    assert back.json()["version"] == 1
    assert [(move["kind"], move["actor"], move["reason"]) for move in history[:2]] == [
        ("rollback", "admin (lan)", "worse"), ("move", "admin (lan)", "better"),
    ]  # fmt: skip
    assert audit[0]["actor"] == "admin (lan)"


async def test_a_gate_keeps_a_version_out_and_a_held_one_cannot_be_deleted(
    serving: Serving, filled: ModelRegistry
) -> None:
    filled.set_gate("lop-10", "production", {"require_evaluation": True})
    async with serving(admin_token=TOKEN) as client:
        tag = {"If-Match": '"1"'}
        refused = await client.put(ALIAS, json={"version": 2}, headers=ADMIN | tag)
        held = await client.delete("/registry/adapters/lop-10/versions/1", headers=ADMIN)
        gone = await client.delete("/registry/adapters/lop-10/versions/2", headers=ADMIN)
        hidden = await client.get("/registry/adapters/lop-10/versions/2")
        restored = await client.post("/registry/adapters/lop-10/versions/2/restore", headers=ADMIN)
        unset = await client.delete(ALIAS, headers=ADMIN | tag)
    assert code(refused) == (409, "gate-refused")
    assert code(held) == (409, "version-in-use")
    assert gone.status_code == restored.status_code == unset.status_code == 200
    assert code(hidden) == (410, "version-deleted")
    assert filled.aliases("lop-10") == {}
