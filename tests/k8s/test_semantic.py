"""The checker of rendered manifests finds each kind of mistake, and nothing in a sound release."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from k8s.tools.semantic import Manifest, find_mistakes, load, quantity

RELEASE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  selector: {matchLabels: {app: app}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}
  template:
    metadata: {labels: {app: app, tier: web}}
    spec:
      terminationGracePeriodSeconds: 30
      initContainers:
        - name: first
          image: app:1
          volumeMounts: [{name: data, mountPath: /data}]
      containers:
        - name: app
          image: app:1
          ports: [{name: http, containerPort: 8000}]
          livenessProbe: {httpGet: {path: /, port: http}}
          lifecycle: {preStop: {sleep: {seconds: 10}}}
          resources:
            requests: {cpu: 500m, memory: 1Gi}
            limits: {memory: 1Gi, nvidia.com/gpu: "1", ephemeral-storage: 2Gi}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes:
        - name: data
          emptyDir: {sizeLimit: 1Gi}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec:
  selector: {app: app}
  ports: [{port: 80}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: app}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: app}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: app}
spec:
  maxReplicas: 3
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: app}
"""


def container(release: list[Manifest]) -> dict[str, Any]:
    return release[0]["spec"]["template"]["spec"]["containers"][0]


def change(**changes: Any) -> Callable[[list[Manifest]], None]:
    def apply(release: list[Manifest]) -> None:
        container(release).update(changes)

    return apply


def set_in(number: int, path: str, value: Any) -> Callable[[list[Manifest]], None]:
    def apply(release: list[Manifest]) -> None:
        *parents, last = path.split("/")
        target: Any = release[number]
        for name in parents:
            target = target[int(name)] if name.isdigit() else target[name]
        target[last] = value

    return apply


def double(release: list[Manifest]) -> None:
    release.append(copy.deepcopy(release[1]))


def test_a_sound_release_has_no_mistakes() -> None:
    assert find_mistakes(load(RELEASE)) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (double, "two of it"),
        (set_in(0, "apiVersion", "apps/v1beta1"), "has no apps/v1beta1"),
        (set_in(0, "spec/replcas", 2), "replcas"),
        (set_in(0, "spec/replicas", "two"), "spec.replicas"),
        (set_in(0, "spec/selector/matchLabels", {"app": "other"}), "does not match"),
        (set_in(0, "spec/strategy/rollingUpdate/maxUnavailable", "0%"), "both 0"),
        (change(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}), "above its"),
        (
            change(resources={"requests": {"a.b/gpu": "1"}, "limits": {"a.b/gpu": "2"}}),
            "request and limit of a.b/gpu differ",
        ),
        (
            change(resources={"limits": {"ephemeral-storage": "500Mi"}}),
            "beyond the limit of ephemeral-storage",
        ),
        (change(volumeMounts=[{"name": "date", "mountPath": "/d"}]), "no volume is called date"),
        (
            set_in(0, "spec/template/spec/initContainers/0/volumeMounts/0/name", "date"),
            "container first: no volume is called date",
        ),
        (change(livenessProbe={"httpGet": {"path": "/", "port": "web"}}), "a port called web"),
        (change(lifecycle={"preStop": {"sleep": {"seconds": 30}}}), "whole grace period"),
        (set_in(1, "spec/selector/app", "other"), "Service app: selects no pod"),
        (set_in(2, "spec/selector/matchLabels/app", "x"), "PodDisruptionBudget app: selects no"),
        (set_in(3, "spec/scaleTargetRef/name", "other"), "there is no other to scale"),
    ],
)
def test_each_mistake_is_found(spoil: Callable[[list[Manifest]], None], said: str) -> None:
    release = load(RELEASE)
    spoil(release)
    mistakes = find_mistakes(release)

    assert len(mistakes) == 1, mistakes
    assert said in mistakes[0]


def test_kinds_of_a_named_group_need_no_schema() -> None:
    monitor: Manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "app"},
    }
    assert find_mistakes([monitor], frozenset({"monitoring.coreos.com"})) == []
    assert len(find_mistakes([monitor])) == 1


def test_quantities_are_numbers() -> None:
    assert [quantity(text) for text in ("500m", "2", 2, "1Gi", "1.5k")] == [0.5, 2, 2, 2**30, 1500]
    with pytest.raises(ValueError, match="8GB"):
        quantity("8GB")
