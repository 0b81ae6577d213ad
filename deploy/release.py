"""What the objects of one release share: names, labels, variables, probes, and what a container may do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from deploy import container
from deploy.box import Box
from deploy.environment import Environment, Resources, SecretKey

Manifest = dict[str, Any]
Component = Literal["gateway", "engine", "activator", "weights"]

GATEWAY_PORT = container.PORT
ENGINE_PORT = 8421
USER = container.UID
BENTO, MODELS, STATE = container.BENTO, container.MODELS, container.STATE
"""The image's own places."""
CACHE = f"{STATE}/cache"
CACHES = {
    "FLASHINFER_WORKSPACE_BASE": CACHE,
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
}
"""Where the engine keeps what it compiles: on a volume, from which it may load libraries."""
CANARY = "-canary"
SHARED_MEMORY = "/dev/shm"  # noqa: S108  a mount, no file
_PROBE_SECONDS = 5


@dataclass(frozen=True)
class Release:
    """One box in one environment; a canary is a release of its own beside the stable one."""

    box: Box
    environment: Environment
    canary: bool = False
    revision: str | None = None
    """Of a Helm release: its values change after the rendering, and names that follow from a spec cannot."""

    @property
    def stable_name(self) -> str:
        """The name without the canary's ending: what both share."""
        return self.environment.name or self.box.name

    @property
    def name(self) -> str:
        """Of this release."""
        return f"{self.stable_name}{CANARY}" if self.canary else self.stable_name

    @property
    def concurrency(self) -> int:
        """Requests at an engine beyond which another is started: as told, or by what saturates it."""
        told = self.environment.engine
        return told.concurrency or self.box.concurrency(told.saturation)

    def named(self, component: Component) -> str:
        """Return the name of a component's objects."""
        return f"{self.name}-{component}"

    def ending(self, *content: Any) -> str:
        """Return the end of the name of what can never be changed: another one for other content."""
        return self.revision or hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def selector(self, component: Component) -> dict[str, str]:
        """Return the labels by which a component's pods are found; they never change."""
        return {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/component": component}

    def labels(self, component: Component) -> dict[str, str]:
        """Return the labels of a component's objects."""
        return {
            "app.kubernetes.io/name": self.box.name,
            **self.selector(component),
            "app.kubernetes.io/version": self.box.version,
            "app.kubernetes.io/managed-by": "ekiben",
        }

    def made(
        self, kind: str, component: Component, spec: Any = None, *, api: str = "v1", name: str | None = None,
        annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, **more: Any,
    ) -> Manifest:  # fmt: skip
        """Return an object of this release."""
        metadata: dict[str, Any] = {
            "name": name or self.named(component),
            "namespace": self.environment.namespace,
            "labels": {**self.labels(component), **(labels or {})},
        }
        if annotations:
            metadata["annotations"] = annotations
        told = {} if spec is None else {"spec": spec}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **told, **more}


def variable(name: str, value: str | SecretKey) -> dict[str, Any]:
    """Return a container's variable: a value, or a reference to a key of a Secret."""
    if isinstance(value, str):
        return {"name": name, "value": value}
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": value.name, "key": value.key}}}


def probe(path: str, port: str | int, *, period: int = 10, seconds: int = _PROBE_SECONDS, failures: int = 3) -> dict[str, Any]:
    """Return a probe by HTTP: every `period` seconds, answered within `seconds`."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": seconds,
        "failureThreshold": failures,
    }


def startup(path: str, port: str | int, seconds: int, *, period: int = _PROBE_SECONDS) -> dict[str, Any]:
    """Return a startup probe that gives a container `seconds` to answer."""
    return probe(path, port, period=period, failures=-(-seconds // period))


def resources(given: Resources, gpus: dict[str, str] | None = None, *, whole: bool = False) -> dict[str, Any]:
    """Return a container's resources; `whole`: processors are its limit too, so that threads are laid out by them."""
    limits = {"memory": given.memory, **({"cpu": given.cpu} if whole else {}), **(gpus or {})}
    return {"requests": {"cpu": given.cpu, "memory": given.memory}, "limits": limits}


def container_security() -> dict[str, Any]:
    """Return what a container may do: nothing but run, as nobody in particular, and write where a volume is."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security() -> dict[str, Any]:
    """Return the same of a pod; its volumes belong to the group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def without_none(told: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping without what is None or empty: a manifest names what is wanted."""
    return {key: value for key, value in told.items() if value not in (None, {}, [], ())}
