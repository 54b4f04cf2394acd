"""What a schema cannot see in rendered manifests: that the parts of a release fit each other.

python k8s/tools/semantic.py FILE... [--crd-group GROUP]... [--kubernetes-version 1.37]
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs] typed, but without a mark
import yaml

Manifest = dict[str, Any]
WORKLOADS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job"})
_DECIMAL = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS = _DECIMAL | {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def find_mistakes(
    manifests: list[Manifest], crd_groups: frozenset[str] = frozenset(), version: str = "1.37"
) -> list[str]:
    """One line for each mistake; none means that the release hangs together."""
    return [
        *_duplicates(manifests),
        *(mistake for m in manifests for mistake in _schema_mistakes(m, crd_groups, version)),
        *(mistake for m in manifests if m["kind"] in WORKLOADS for mistake in _workload(m)),
        *(mistake for m in manifests if m["kind"] == "Pod" for mistake in _pod(m, m["spec"])),
        *_references(manifests),
    ]


def _duplicates(manifests: list[Manifest]) -> Iterator[str]:
    names = [_name(manifest) for manifest in manifests]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: there are two of it"


def _schema_mistakes(manifest: Manifest, crd_groups: frozenset[str], version: str) -> Iterator[str]:
    group = manifest["apiVersion"].rpartition("/")[0]
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        if group not in crd_groups:
            yield f"{_name(manifest)}: Kubernetes {version} has no {manifest['apiVersion']}"
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        yield f"{_name(manifest)}: {where}: {error.message.splitlines()[0]}"


def _workload(manifest: Manifest) -> Iterator[str]:
    spec, template = manifest["spec"], manifest["spec"]["template"]
    labels = template["metadata"].get("labels", {})
    selector = spec.get("selector", {}).get("matchLabels", {})
    if manifest["kind"] != "Job" and not (selector and selector.items() <= labels.items()):
        yield f"{_name(manifest)}: the selector does not match the template's labels"
    rolling = spec.get("strategy", {}).get("rollingUpdate")
    if rolling is not None:
        surge, unavailable = (rolling.get(k, "25%") for k in ("maxSurge", "maxUnavailable"))
        if str(surge).strip("%") == "0" and str(unavailable).strip("%") == "0":
            yield f"{_name(manifest)}: maxSurge and maxUnavailable are both 0"
    yield from _pod(manifest, template["spec"])


def _pod(manifest: Manifest, pod: Manifest) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    grace_s = pod.get("terminationGracePeriodSeconds", 30)
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        where = f"{_name(manifest)}, container {container['name']}"
        yield from (f"{where}: {mistake}" for mistake in _resources(container, volumes))
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{where}: no volume is called {mount['name']}"
        ports = {port.get("name") for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{where}: {probe} asks for a port called {port}"
        pre_stop = container.get("lifecycle", {}).get("preStop", {})
        if pre_stop.get("sleep", {}).get("seconds", 0) >= grace_s:
            yield f"{where}: preStop sleeps through the whole grace period of {grace_s} s"


def _resources(container: Manifest, volumes: dict[str, Manifest]) -> Iterator[str]:
    requests = container.get("resources", {}).get("requests", {})
    limits = container.get("resources", {}).get("limits", {})
    for resource, amount in requests.items():
        if quantity(amount) > quantity(limits.get(resource, amount)):
            yield f"the request for {resource} is above its limit"
    for resource in {*requests, *limits}:
        if "/" in resource and requests.get(resource, limits.get(resource)) != limits.get(resource):
            yield f"request and limit of {resource} differ"
    disks = [
        volumes[mount["name"]].get("emptyDir", {})
        for mount in container.get("volumeMounts", [])
        if mount["name"] in volumes
    ]
    on_disk = sum(quantity(d.get("sizeLimit", 0)) for d in disks if d.get("medium") != "Memory")
    if on_disk > quantity(limits.get("ephemeral-storage", on_disk)):
        yield "its emptyDirs may grow beyond the limit of ephemeral-storage"


def _references(manifests: list[Manifest]) -> Iterator[str]:
    named = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    pods = [
        m["spec"]["template"]["metadata"].get("labels", {})
        for m in manifests
        if m["kind"] in WORKLOADS
    ]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                selector = spec.get("selector")
            case "PodDisruptionBudget":
                selector = spec["selector"].get("matchLabels")
            case "NetworkPolicy":
                selector = spec["podSelector"].get("matchLabels")
            case "HorizontalPodAutoscaler" | "ScaledObject":
                target = spec["scaleTargetRef"]
                if (target.get("kind", "Deployment"), target["name"]) not in named:
                    yield f"{_name(manifest)}: there is no {target['name']} to scale"
                continue
            case _:
                continue
        if selector and not any(selector.items() <= labels.items() for labels in pods):
            yield f"{_name(manifest)}: selects no pod of the release"


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: `500m`, `2`, `16Gi`."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a quantity")
    return float(match[1]) * _UNITS[match[2]]


def load(text: str) -> list[Manifest]:
    """The manifests in a rendered file."""
    documents: list[Manifest | None] = list(yaml.safe_load_all(text))
    return [document for document in documents if document]


def main() -> int:
    """Print the mistakes of each file; status 1 if there is any."""
    parser = argparse.ArgumentParser(description="Check that rendered manifests fit each other.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--crd-group", action="append", default=[])
    parser.add_argument("--kubernetes-version", default="1.37")
    options = parser.parse_args()
    mistakes = [
        f"{file}: {mistake}"
        for file in options.files
        for mistake in find_mistakes(
            load(file.read_text(encoding="utf-8")),
            frozenset(options.crd_group),
            options.kubernetes_version,
        )
    ]
    print("\n".join(mistakes), end="\n" if mistakes else "")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
