"""The chart in every shape that it ships in: rendered, validated, and refused where it must be."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.tools.semantic import Manifest, find_mistakes, load, quantity
from k8s.tools.settings_schema import CHARTS_OWN, SCHEMA, setting_schemas, with_settings
from service.config import ServiceConfig

CHART = Path(__file__).resolve().parents[2] / "k8s" / "chart"
CRD_GROUPS = frozenset({"monitoring.coreos.com", "gateway.networking.k8s.io"})
EVERYTHING = (
    "--set=monitoring.serviceMonitor.enabled=true",
    "--set=monitoring.prometheusRule.enabled=true",
    "--set=autoscaling.enabled=true",
    "--set=httpRoute.enabled=true",
    "--set=httpRoute.parentRefs[0].name=gateway",
    "--set=httpRoute.pathPrefix=/mcq",
)
SHAPES = {
    "plain": (),
    "cpu": (f"--values={CHART / 'values-cpu.yaml'}",),
    "gpu": (f"--values={CHART / 'values-gpu.yaml'}",),
    "everything": EVERYTHING,
    "gpu with everything": (f"--values={CHART / 'values-gpu.yaml'}", *EVERYTHING),
    "nothing": (
        "--set=serviceAccount.create=false",
        "--set=podDisruptionBudget.enabled=false",
        "--set=networkPolicy.enabled=false",
        "--set=registry.importBundled=false",
    ),
}

Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., str]

pytestmark = pytest.mark.slow


def the(kind: str, manifests: list[Manifest]) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "Pod":
            yield manifest["spec"]


@pytest.mark.parametrize("shape", ["plain", "cpu", "gpu", "everything"])
def test_lint_finds_nothing(helm: Helm, shape: str) -> None:
    done = helm("lint", "--strict", CHART, *SHAPES[shape])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_rendered_is_valid_and_hangs_together(
    render: Render, shape: str, version: str
) -> None:
    manifests = load(render(*SHAPES[shape], version=version))
    assert find_mistakes(manifests, CRD_GROUPS, version) == []


def test_a_cluster_without_the_crds_gets_none_of_their_objects(render: Render) -> None:
    bare = load(render(*EVERYTHING, crds=False))
    full = load(render(*EVERYTHING))

    assert find_mistakes(bare) == []
    assert {m["kind"] for m in full} - {m["kind"] for m in bare} == {
        "HTTPRoute",
        "PrometheusRule",
        "ServiceMonitor",
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_pods_are_fit_for_a_restricted_namespace(render: Render, shape: str) -> None:
    for pod in pods(load(render(*SHAPES[shape]))):
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_setting_in_the_manifests_exists(render: Render, shape: str) -> None:
    text = render(*SHAPES[shape])
    used = set(re.findall(r"\bMCQ_[A-Z_]+", text))

    assert {"MCQ_HOST", "MCQ_PORT", "MCQ_CACHE_DIR", "MCQ_BACKEND"} <= used
    assert used <= {f"MCQ_{name.upper()}" for name in ServiceConfig.model_fields}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_service_accepts_the_settings_it_is_given(render: Render, shape: str) -> None:
    (pod, _) = pods(load(render(*SHAPES[shape])))
    given = {
        entry["name"].removeprefix("MCQ_").lower(): entry["value"]
        for entry in pod["containers"][0]["env"]
        if entry["name"].startswith("MCQ_") and "value" in entry
    }
    config = ServiceConfig.model_validate(given)

    grace_s = pod["terminationGracePeriodSeconds"]
    pre_stop_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    assert pre_stop_s + config.drain_timeout_s < grace_s


def test_numbers_arrive_as_they_were_written(render: Render) -> None:
    deployment = the(
        "Deployment",
        load(
            render(
                "--set=settings.max_context_words=1000000",
                "--set-json=settings.registry_poll_s=0.5",
                "--set=settings.default_adapter=a&b<c>",
                "--set=settings.registry_store=null",
            )
        ),
    )
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    values = {entry["name"]: entry.get("value") for entry in env}

    assert values["MCQ_MAX_CONTEXT_WORDS"] == "1000000"
    assert values["MCQ_REGISTRY_POLL_S"] == "0.5"
    assert values["MCQ_DEFAULT_ADAPTER"] == "a&b<c>"
    assert "MCQ_REGISTRY_STORE" not in values


def test_a_gpu_is_asked_for_once_and_memory_is_guaranteed(render: Render) -> None:
    deployment = the("Deployment", load(render(*SHAPES["gpu"])))
    pod = deployment["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]

    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert quantity(resources["requests"]["memory"]) == quantity(resources["limits"]["memory"])
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_secrets_reach_the_service_by_reference_only(render: Render) -> None:
    manifests = load(
        render("--set=settingsFromSecret.registry.name=db,settingsFromSecret.registry.key=url")
    )
    pod = the("Deployment", manifests)["spec"]["template"]["spec"]
    (entry,) = [e for e in pod["containers"][0]["env"] if e["name"] == "MCQ_REGISTRY"]

    assert entry["valueFrom"] == {"secretKeyRef": {"name": "db", "key": "url"}}
    assert "registry" not in {volume["name"] for volume in pod["volumes"]}


def test_the_bundled_adapters_are_imported_before_the_service_needs_its_default(
    render: Render,
) -> None:
    for shape in ("plain", "cpu", "gpu"):
        pod = the("Deployment", load(render(*SHAPES[shape])))["spec"]["template"]["spec"]
        (prepare,) = pod["initContainers"]
        (service,) = pod["containers"]
        env = {entry["name"]: entry for entry in service["env"]}

        adapter = CHART.parents[1] / "adapters" / env["MCQ_DEFAULT_ADAPTER"]["value"]
        assert (adapter / "manifest.json").is_file()
        assert "import --unless-deleted" in prepare["command"][-1]
        assert ("migrate" in prepare["command"][-1]) == (shape == "gpu")
        wanted = {"MCQ_REGISTRY", "MCQ_REGISTRY_STORE"} & env.keys()
        assert [e for e in prepare["env"] if e["name"].startswith("MCQ_")] == [
            env[name] for name in sorted(wanted)
        ]


def test_a_registry_may_be_left_as_it_is(render: Render) -> None:
    by_hand = "--set=registry.importBundled=false,registry.migrate=false"
    pod = the("Deployment", load(render(*SHAPES["gpu"], by_hand)))["spec"]["template"]["spec"]
    assert "initContainers" not in pod


def test_with_autoscaling_nobody_else_sets_the_number_of_pods(render: Render) -> None:
    assert "replicas" not in the("Deployment", load(render(*EVERYTHING)))["spec"]


def test_a_volume_that_is_there_already_is_used(render: Render) -> None:
    manifests = load(
        render(
            "--set=modelCache.persistence.enabled=true",
            "--set=modelCache.persistence.existingClaim=models",
        )
    )
    volumes = the("Deployment", manifests)["spec"]["template"]["spec"]["volumes"]

    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in volumes
    assert "PersistentVolumeClaim" not in {manifest["kind"] for manifest in manifests}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("replicas=foo", "replicas"),
        ("replicas=-1", "replicas"),
        ("replicaCount=2", "replicaCount"),
        ("settings.base_modle=x", "base_modle"),
        ("settings.backend=vllm2", "backend"),
        ("settings.port=80", "port"),
        ("settingsFromSecret.regstry.name=x,settingsFromSecret.regstry.key=y", "regstry"),
        ("settingsFromSecret.registry.name=x", "key"),
        ("env[0].name=MCQ_PORT,env[0].value=1", "env"),
        ("resources.limits.memory=8GB", "memory"),
        ("image.digest=sha256:12", "digest"),
        ("drain.preStopSeconds=0", "preStopSeconds"),
        ("service.type=ExternalName", "type"),
        ("gpu.enabled=yes", "enabled"),
        ("modelCache.persistence.enabled=true", "maxSurge"),
        ("modelCache.persistence.enabled=true,replicas=2", "ReadWriteOnce"),
        ("rollout.maxSurge=0,rollout.maxUnavailable=0", "both"),
        ("autoscaling.minReplicas=9", "minReplicas"),
        ("httpRoute.enabled=true", "parentRefs"),
        (
            "settings.registry=x,settingsFromSecret.registry.name=x,"
            "settingsFromSecret.registry.key=y",
            "exclude",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, values: str, said: str) -> None:
    crds = "--api-versions=gateway.networking.k8s.io/v1"
    done = helm("template", "mcq", CHART, "--kube-version=1.37", crds, f"--set={values}")

    assert done.returncode != 0, "helm took it"
    assert said in done.stderr


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    done = helm("template", "mcq", CHART, "--kube-version=1.30")
    assert done.returncode != 0
    assert "incompatible with Kubernetes" in done.stderr


def test_the_schema_knows_todays_settings() -> None:
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    again = with_settings(json.loads(json.dumps(schema)))

    assert schema == again, "run: python k8s/tools/settings_schema.py"
    assert set(setting_schemas()) | CHARTS_OWN == set(ServiceConfig.model_fields)


def test_every_value_has_a_rule() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    properties = json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]

    assert set(values) == set(properties) - {"global"}
    for name, value in values.items():
        if properties[name].get("additionalProperties") is False and name != "settings":
            assert set(value) == set(properties[name]["properties"]), name


def test_the_readme_names_every_value() -> None:
    readme = (CHART.parent / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert [name for name in values if f"`{name}" not in readme] == []
