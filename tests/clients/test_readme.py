"""Every example of the client's README runs against the real application."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "clients" / "python"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_there_are_examples() -> None:
    assert len(PYTHON) >= 4
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("example", PYTHON)
def test_an_example_in_python_runs(example: str, live_url: str) -> None:
    code = example.replace("http://localhost:8000", live_url)
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, env=environment
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert done.stdout


def test_the_commands_run_in_order(live_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "TRACNGHIEM_URL": live_url}
    shell = [f'mcq-client() {{ "{sys.executable}" -m mcq_client "$@"; }}', "set -e -o pipefail"]
    shell += [line for line in COMMANDS if not line.startswith("pip install")]
    done = subprocess.run(
        ["bash", "-c", "\n".join(shell)], capture_output=True, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert done.stdout.decode().count("\n1. ") >= 1
