"""The image: a clean Dockerfile, and exactly the folders that the service needs."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "k8s" / "images" / "Dockerfile"
SMOKE = ROOT / "k8s" / "chart" / "files" / "smoke.py"
COPIED = re.findall(r"^COPY (\w+)/ \1/$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8")
    allowed = {line[1:] for line in ignore.splitlines() if line.startswith("!")}

    assert {"mcq", "model_registry", "service", "adapters"} == set(COPIED)
    assert allowed == {*COPIED, "locks/service.txt"}


def test_the_image_reaches_every_registry_that_the_chart_can_name() -> None:
    lock = (ROOT / "locks" / "service.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"(?m)^([a-z0-9-]+)==", lock))
    assert {"psycopg", "psycopg-binary", "obstore"} <= locked


def test_the_copied_folders_serve_and_pass_the_smoke_test(tmp_path: Path) -> None:
    for folder in COPIED:
        if (ROOT / folder).is_dir():
            shutil.copytree(
                ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
            )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "MCQ_BACKEND": "echo",
        "MCQ_PORT": str(port),
        "MCQ_REGISTRY": str(tmp_path / "registry"),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=tmp_path,
        env={**os.environ, **settings, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, server)
        smoke = subprocess.run([sys.executable, "-c", SMOKE.read_text(encoding="utf-8"), url])
        assert smoke.returncode == 0
    finally:
        server.terminate()
        server.wait(20)


def _wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service did not start from the image's folders")
