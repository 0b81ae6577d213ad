"""The engine's objects: vLLM alone, with the bundle's arguments, in the same image."""

from __future__ import annotations

from typing import Any

from deploy import release as made
from deploy.gateway import disruption, draining, pod
from deploy.release import BENTO, ENGINE_PORT, Manifest, Release, probe, resources, startup, variable
from deploy.storage import engine_volumes

SOURCE = f"{BENTO}/src"


def engine(release: Release) -> list[Manifest]:
    """Return the engine's Deployment, Service and budget of disruptions; its scale belongs to whoever starts and stops it."""
    return [
        release.made("Deployment", "engine", _deployment(release), api="apps/v1"),
        service(release),
        disruption(release, "engine"),
    ]


def service(release: Release) -> Manifest:
    """Return the engine's Service."""
    ports = [{"name": "http", "port": ENGINE_PORT, "targetPort": "http"}]
    return release.made("Service", "engine", {"selector": release.selector("engine"), "ports": ports})


def container(release: Release, *, port_name: str = "http", probed: str | int | None = None) -> dict[str, Any]:
    """Return the engine's container; `probed` is its port as probes call it, where that is not the name."""
    asked = probed or port_name
    told = release.environment
    gpu = told.engine.gpu
    return {
        "name": "engine",
        "image": told.image,
        "args": ["python", "-m", "services.cli", "engine", "serve"],
        "workingDir": SOURCE,
        "ports": [{"name": port_name, "containerPort": ENGINE_PORT}],
        "env": _environment(release),
        "resources": resources(told.engine.resources, {gpu.resource: str(gpu.count)} if gpu else None, whole=True),
        "securityContext": made.container_security(),
        # Somebody waits for it: a second between two looks is a second that a start takes longer.
        "startupProbe": startup("/health", asked, told.start_seconds, period=1),
        "readinessProbe": probe("/health", asked, period=1, failures=15),
        "livenessProbe": probe("/health", asked, period=15, failures=4),
        "volumeMounts": engine_volumes(release)[1],
    }


def nodes(release: Release) -> dict[str, str]:
    """Return the labels of nodes that an engine may be on."""
    told = release.environment.engine
    return {"kubernetes.io/arch": told.architecture, **told.node_selector}


def _deployment(release: Release) -> dict[str, Any]:
    told = release.environment
    contained = {**container(release), "lifecycle": draining()}
    spec = pod(release, "engine", contained, engine_volumes(release)[0])
    return {
        "selector": {"matchLabels": release.selector("engine")},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": told.wake_seconds + 60,
        "template": {
            "metadata": {"labels": release.labels("engine")},
            "spec": {**spec, "nodeSelector": nodes(release)},
        },
    }


def _environment(release: Release) -> list[dict[str, Any]]:
    told = release.environment
    plain: dict[str, Any] = {
        "EKIBEN_CACHE_DIR": made.CACHE,
        "EKIBEN_DEVICE": "cuda" if told.engine.gpu else "cpu",
        "EKIBEN_ENGINE_DRAIN_SECONDS": str(told.longest_stream_seconds),
        "EKIBEN_ENGINE_HOST": "0.0.0.0",  # noqa: S104  the pod's address; NetworkPolicy and key say who may come
        "EKIBEN_ENGINE_PORT": str(ENGINE_PORT),
        **made.CACHES,
    }
    if key := told.secrets.engine_key:
        plain["EKIBEN_ENGINE_KEY"] = key
    return [variable(name, value) for name, value in sorted(plain.items())]
