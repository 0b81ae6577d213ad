"""The gateway's objects: what stays up, and takes callers while the engine sleeps."""

from __future__ import annotations

from typing import Any

from deploy import release as made
from deploy.release import GATEWAY_PORT, Manifest, Release, probe, resources, startup, variable
from deploy.storage import gateway_volumes

_START_SECONDS = 120
"""The gateway's own start took 10 to 40 s on two processors; it waits for no engine that sleeps."""
_SURPLUS_SECONDS = 5
"""Load balancers go on sending for so long after a pod was told to end."""


def gateway(release: Release, engine_url: str) -> list[Manifest]:
    """Return the gateway's Deployment, Service, budget of disruptions and autoscaler."""
    return [
        release.made("Deployment", "gateway", _deployment(release, engine_url), api="apps/v1"),
        service(release),
        disruption(release, "gateway"),
        _autoscaler(release),
    ]


def service(release: Release) -> Manifest:
    """Return the gateway's Service."""
    ports = [{"name": "http", "port": GATEWAY_PORT, "targetPort": "http"}]
    return release.made("Service", "gateway", {"selector": release.selector("gateway"), "ports": ports})


def disruption(release: Release, component: made.Component) -> Manifest:
    """Return what lets a drained node take one pod at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": release.selector(component)}}
    return release.made("PodDisruptionBudget", component, spec, api="policy/v1")


def environment(release: Release, engine_url: str) -> list[dict[str, Any]]:
    """Return the gateway's variables, secrets by reference."""
    told = release.environment
    plain = {
        "EKIBEN_CACHE_DIR": made.CACHE,
        "EKIBEN_STATE_DIR": made.STATE,
        "EKIBEN_ENGINE_URL": engine_url,
        "EKIBEN_DEVICE": "cpu",
    }
    if told.sleeps:
        plain |= {"EKIBEN_ENGINE_SLEEPS": "true", "EKIBEN_ENGINE_WAKE_SECONDS": str(told.answer_seconds)}
    secrets = {**told.secrets.settings(), **told.secrets.variables}
    if told.secrets.engine_key:
        secrets["EKIBEN_ENGINE_KEY"] = told.secrets.engine_key
    return [variable(name, value) for name, value in sorted({**plain, **told.settings, **secrets}.items())]


def pod(release: Release, component: made.Component, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a pod's spec around its container: placed, spread, without rights, and with time to end its streams."""
    told = release.environment
    nodes = told.engine if component == "engine" else told.gateway
    matching = {"labelSelector": {"matchLabels": release.selector(component)}}
    spread = [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", **matching}
        for key in (nodes.spread, "kubernetes.io/hostname")
    ]
    return made.without_none({
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": made.pod_security(),
        "terminationGracePeriodSeconds": told.drain_seconds,
        "imagePullSecrets": [{"name": name} for name in told.pull_secrets],
        "nodeSelector": nodes.node_selector,
        "tolerations": list(nodes.tolerations),
        "topologySpreadConstraints": spread,
        "containers": [container],
        "volumes": volumes,
    })  # fmt: skip


def draining() -> dict[str, Any]:
    """Return what a container does before it is told to end: it goes on serving who was sent to it meanwhile."""
    return {"preStop": {"exec": {"command": ["sleep", str(_SURPLUS_SECONDS)]}}}


def _deployment(release: Release, engine_url: str) -> dict[str, Any]:
    told = release.environment
    volumes, mounts = gateway_volumes(release)
    container = {
        "name": "gateway",
        "image": told.image,
        "ports": [{"name": "http", "containerPort": GATEWAY_PORT}],
        "env": environment(release, engine_url),
        "resources": resources(told.gateway.resources),
        "securityContext": made.container_security(),
        "startupProbe": startup("/livez", "http", _START_SECONDS),
        # BentoML's own look at the services beside it takes up to five seconds.
        "readinessProbe": probe("/readyz", "http", seconds=6),
        "livenessProbe": probe("/livez", "http", period=15, failures=4),
        "lifecycle": draining(),
        "volumeMounts": mounts,
    }
    return {
        "selector": {"matchLabels": release.selector("gateway")},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": _START_SECONDS + told.wake_seconds,
        "template": {"metadata": {"labels": release.labels("gateway")}, "spec": pod(release, "gateway", container, volumes)},
    }


def _autoscaler(release: Release) -> Manifest:
    told = release.environment.gateway
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": release.named("gateway")}
    busy = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": told.cpu_percent}},
    }
    spec = {
        "scaleTargetRef": target,
        "minReplicas": told.replicas.min,
        "maxReplicas": told.replicas.max,
        "metrics": [busy],
        # A gateway that ends takes its streams' length to do so: it is not taken away for a quiet minute.
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }
    return release.made("HorizontalPodAutoscaler", "gateway", spec, api="autoscaling/v2")
