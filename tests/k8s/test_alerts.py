"""The alerts watch metrics that exist, and fire when they should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from service.metrics import Metrics

CHART = Path(__file__).resolve().parents[2] / "k8s" / "chart"
ALERTS = CHART / "files" / "alerts.yaml"
CASES = Path(__file__).parent / "alerts_test.yaml"


def exported_names() -> set[str]:
    """The names under which the service's metrics can be queried."""
    text = generate_latest(Metrics().registry).decode()
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {f"{name}{part}" for part in parts}
    return names


def test_alerts_watch_metrics_that_the_service_exports() -> None:
    watched = set(re.findall(r"\bmcq_\w+", ALERTS.read_text(encoding="utf-8")))
    assert watched
    assert watched - exported_names() == set()


def test_autoscaling_follows_a_metric_that_the_service_exports() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["autoscaling"]["metric"] in exported_names()


def test_every_alert_has_a_case() -> None:
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    fired = {check["alertname"] for check in checks if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    for file in (ALERTS, CASES):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", CASES.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
