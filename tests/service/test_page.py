"""The two pages: served with a strict policy, complete in both languages, alive in a browser."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from model_registry import ModelRegistry
from tests.service.conftest import Serving
from tests.service.test_adapters import publish
from tests.service.test_operations import free_port, start

PAGE = Path(__file__).parents[2] / "service" / "page"
SERVED = {"/": "index.html", "/registry": "registry.html"} | {
    f"/{file.name}": file.name for file in PAGE.iterdir() if file.suffix != ".html"
}
KINDS = {".html": "html", ".js": "javascript", ".css": "css"}


@pytest.mark.parametrize("path", SERVED)
async def test_every_file_is_served_with_a_strict_policy(serving: Serving, path: str) -> None:
    async with serving() as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert KINDS[Path(SERVED[path]).suffix] in answer.headers["content-type"]
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.content == (PAGE / SERVED[path]).read_bytes()


def test_the_page_explains_every_check_in_both_languages() -> None:
    from mcq.checks import CHECKS

    script = (PAGE / "page.js").read_text(encoding="utf-8")
    for name in CHECKS:
        assert len(re.findall(rf"\b{name}:", script)) == 2, name


def test_the_registry_page_says_everything_in_both_languages() -> None:
    script = (PAGE / "registry-texts.js").read_text(encoding="utf-8")
    vietnamese, english = (
        set(re.findall(r'(\w+): (?=["({])', part)) for part in script.split("\n  en: {")
    )
    assert vietnamese - {"vi"} == english
    scripts = [file.read_text(encoding="utf-8") for file in PAGE.glob("registry*.js")]
    used = set(re.findall(r"texts\(\)\.(\w+)", "".join(scripts)))
    used |= set(re.findall(r'data-text="(\w+)"', (PAGE / "registry.html").read_text()))
    assert used - english == set()


def chromium() -> str:
    """The browser, or a skip that says loudly what was not tested."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    print("\n\n*** NOT TESTED in a browser: Chromium is not installed ***\n", file=sys.__stderr__)
    pytest.skip("Chromium is not installed (Debian package `chromium`)")


@pytest.mark.slow
def test_a_browser_shows_versions_history_and_replicas(tmp_path: Path) -> None:
    browser = chromium()
    with ModelRegistry.open(tmp_path / "registry", actor="lan") as registry:
        versions = [publish(registry, tmp_path, "lop-10", fill) for fill in (1, 2)]
        registry.set_alias("lop-10", "production", 1, reason="<b>tốt</b>")
        registry.renew_leases("may-chu-a", versions[:1])
    port = free_port()
    process = start(tmp_path, MCQ_PORT=str(port))
    try:
        _wait(f"http://127.0.0.1:{port}/health/ready")
        done = subprocess.run(
            [
                *(browser, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"),
                *("--dump-dom", f"http://127.0.0.1:{port}/registry"),
            ],
            capture_output=True,
            timeout=120,
        )
    finally:
        process.kill()
        process.communicate()
    page = done.stdout.decode()
    assert '<html lang="vi">' in page
    for text in ("Các phiên bản", "may-chu-a", "&lt;b&gt;tốt&lt;/b&gt;", versions[0].digest):
        assert text in page, text
    assert '<span class="chip">production</span>' in page
    assert "undefined" not in page


def _wait(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the service never became ready")
