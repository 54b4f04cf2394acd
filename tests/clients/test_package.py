"""The client installs as a wheel of its own, and works without the rest of the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_installs_alone_and_its_command_runs(tmp_path: Path, live_url: str) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"
    shutil.copytree(ROOT / "clients" / "python", source)
    run(uv, "build", "--wheel", "-q", "-o", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "mcq_client/py.typed" in packed
    assert {name.split("/")[0] for name in packed} == {"mcq_client"}

    venv = tmp_path / "venv"
    run(uv, "venv", "-q", "--python", sys.executable, str(venv))
    run(uv, "pip", "install", "-q", "--python", str(venv / "bin" / "python"), str(wheel))
    listed = run(str(venv / "bin" / "mcq-client"), "--url", live_url, "adapters")
    assert listed == "base model: echo\n"
