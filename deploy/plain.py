"""The plain target: Deployments, and the project's own activator before an engine that may be at zero."""

from __future__ import annotations

from typing import Any

from deploy import network
from deploy import release as made
from deploy.engine import SOURCE, engine
from deploy.gateway import draining, gateway, pod
from deploy.monitoring import monitoring
from deploy.release import ENGINE_PORT, Component, Manifest, Release, probe


def plain(release: Release) -> dict[str, list[Manifest]]:
    """Return the objects by file."""
    sleeps = release.environment.sleeps
    before: Component = "activator" if sleeps else "engine"
    files: dict[str, list[Manifest]] = {
        "gateway": gateway(release, f"http://{release.named(before)}:{ENGINE_PORT}"),
        "engine": _engine(release),
    }
    if sleeps:
        files["activator"] = _activator(release)
    policies = [network.gateway(release, network.pods(release, before), ENGINE_PORT)]
    policies.append(network.engine(release, [network.pods(release, before)]))
    if sleeps:
        policies.append(network.activator(release))
    files["network"] = policies
    scraped: list[Component] = ["engine", "activator"] if sleeps else ["engine"]
    files["monitoring"] = monitoring(release, {one: release.selector(one) for one in scraped})
    return files


def _engine(release: Release) -> list[Manifest]:
    deployment, *others = engine(release)
    told = release.environment.engine
    if told.replicas.min == told.replicas.max:
        deployment = {**deployment, "spec": {"replicas": told.replicas.min, **deployment["spec"]}}
    elif told.replicas.max > 1 and told.queue_metric:
        # A deployment at zero is left alone by its autoscaler: the activator brings the first one, and takes the last away.
        waiting = {
            "type": "Pods",
            "pods": {"metric": {"name": told.queue_metric}, "target": {"type": "AverageValue", "averageValue": "1"}},
        }
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": release.named("engine")},
            "minReplicas": max(told.replicas.min, 1),
            "maxReplicas": told.replicas.max,
            "metrics": [waiting],
        }
        others.append(release.made("HorizontalPodAutoscaler", "engine", spec, api="autoscaling/v2"))
    return [deployment, *others]


def _activator(release: Release) -> list[Manifest]:
    """Return the activator, and the right to change one Deployment's scale: all that it may do."""
    name, told = release.named("activator"), release.environment
    subject = {"kind": "ServiceAccount", "name": name, "namespace": told.namespace}
    rules = [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": [release.named("engine")],
            "verbs": ["get", "patch"],
        }
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    service = {"selector": release.selector("activator"), "ports": [{"name": "http", "port": ENGINE_PORT, "targetPort": "http"}]}
    return [
        release.made("ServiceAccount", "activator", automountServiceAccountToken=False),
        release.made("Role", "activator", api="rbac.authorization.k8s.io/v1", rules=rules),
        release.made("RoleBinding", "activator", api="rbac.authorization.k8s.io/v1", roleRef=role, subjects=[subject]),
        release.made("Deployment", "activator", _deployment(release), api="apps/v1"),
        release.made("Service", "activator", service),
    ]


def _deployment(release: Release) -> dict[str, Any]:
    told = release.environment
    container = {
        "name": "activator",
        "image": told.image,
        "args": activate(
            upstream=f"http://{release.named('engine')}:{ENGINE_PORT}", release=release,
            start=["--deployment", f"{told.namespace}/{release.named('engine')}"],
        ),
        "workingDir": SOURCE,
        "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": made.container_security(),
        "startupProbe": made.startup("/health", "http", 60),
        "readinessProbe": probe("/health", "http", period=5),
        "livenessProbe": probe("/health", "http", period=15, failures=4),
        "lifecycle": draining(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  a mount
    }  # fmt: skip
    spec = pod(release, "activator", container, [{"name": "tmp", "emptyDir": {}}])
    account = {"serviceAccountName": release.named("activator"), "automountServiceAccountToken": True}
    return {
        "replicas": 1,
        "selector": {"matchLabels": release.selector("activator")},
        # Each activator judges by itself what is idle: two at once would be one too many for longer than a roll-over.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": release.labels("activator")}, "spec": {**spec, **account}},
    }


def activate(*, upstream: str, release: Release, start: list[str], port: int = ENGINE_PORT) -> list[str]:
    """Return the activator's command line; `start` says how the upstream is started."""
    told = release.environment
    seconds = {
        "idle": told.engine.idle_seconds,
        "start": told.wake_seconds,
        "hold": told.wake_seconds,
        "stop": told.longest_stream_seconds,
        "drain": told.longest_stream_seconds,
    }
    timed = [word for name, value in seconds.items() for word in (f"--{name}-seconds", str(value))]
    listen = ["--listen", f"0.0.0.0:{port}", "--upstream", upstream]
    return ["python", "-m", "services.cli", "activate", *listen, *timed, *start]
