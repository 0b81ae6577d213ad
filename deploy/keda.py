"""The KEDA target: a Deployment that KEDA scales by what its HTTP add-on's interceptor holds, and by the engine's own queue."""

from __future__ import annotations

from typing import Any

from deploy import network
from deploy.engine import engine
from deploy.gateway import gateway
from deploy.monitoring import monitoring
from deploy.release import ENGINE_PORT, Manifest, Release

_INTERCEPTOR_PORT = 8080
_SCALER = "keda-add-ons-http-external-scaler"
_INTERCEPTOR = "keda-add-ons-http-interceptor-proxy"
_POLL_SECONDS = 15


def keda(release: Release) -> dict[str, list[Manifest]]:
    """Return the objects by file. An engine that never sleeps is reached without the interceptor."""
    told = release.environment
    sleeps, keda_pods = told.sleeps, network.namespaces([told.network.keda])
    # The name by which callers in the cluster ask is the interceptor's: it holds what comes while the engine starts.
    proxy = f"{release.named('engine')}-proxy"
    url = f"http://{_host(release, proxy)}:{_INTERCEPTOR_PORT}" if sleeps else f"http://{release.named('engine')}:{ENGINE_PORT}"
    scaling = [_scaled(release)]
    if sleeps:
        scaling += [_route(release, proxy), _alias(release, proxy)]
    own = network.pods(release, "engine")
    policies = [
        network.gateway(release, keda_pods[0] if sleeps else own, _INTERCEPTOR_PORT if sleeps else ENGINE_PORT),
        network.engine(release, keda_pods if sleeps else [network.pods(release, "gateway")]),
    ]
    return {
        "gateway": gateway(release, url),
        "engine": engine(release),
        "scaling": scaling,
        "network": policies,
        "monitoring": monitoring(release, {"engine": release.selector("engine")}),
    }


def _scaled(release: Release) -> Manifest:
    told = release.environment
    triggers: list[dict[str, Any]] = []
    if told.sleeps:
        address = f"{_SCALER}.{told.network.keda}:9090"
        held = {"scalerAddress": address, "interceptorRoute": release.named("engine")}
        triggers.append({"type": "external-push", "name": "requests", "metadata": held})
    if server := told.monitoring.prometheus:
        query = f'sum(vllm:num_requests_waiting{{namespace="{told.namespace}", pod=~"{release.named("engine")}-.*"}})'
        waiting = {"serverAddress": server, "query": query, "threshold": "1", "ignoreNullValues": "true"}
        triggers.append({"type": "prometheus", "name": "queue", "metadata": waiting})
    if not triggers:
        busy = {"type": "cpu", "name": "cpu", "metricType": "Utilization", "metadata": {"value": "80"}}
        triggers.append(busy)
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": release.named("engine")},
        "minReplicaCount": told.engine.replicas.min,
        "maxReplicaCount": told.engine.replicas.max,
        "pollingInterval": _POLL_SECONDS,
        "cooldownPeriod": told.engine.idle_seconds,
        "triggers": triggers,
    }
    return release.made("ScaledObject", "engine", spec, api="keda.sh/v1alpha1")


def _route(release: Release, proxy: str) -> Manifest:
    told = release.environment
    spec = {
        "target": {"service": release.named("engine"), "port": ENGINE_PORT},
        "rules": [{"hosts": [_host(release, proxy)]}],
        "scalingMetric": {"concurrency": {"targetValue": release.concurrency}},
        # Waiting for the start has a deadline of its own; the answer's length has none.
        "timeouts": {"readiness": f"{told.wake_seconds}s", "request": "0s", "responseHeader": f"{told.longest_stream_seconds}s"},
    }
    return release.made("InterceptorRoute", "engine", spec, api="http.keda.sh/v1beta1")


def _host(release: Release, proxy: str) -> str:
    """Return the host by which the interceptor knows the engine: it is one for all namespaces."""
    return f"{proxy}.{release.environment.namespace}"


def _alias(release: Release, proxy: str) -> Manifest:
    target = f"{_INTERCEPTOR}.{release.environment.network.keda}.svc.cluster.local"
    spec = {"type": "ExternalName", "externalName": target, "ports": [{"name": "http", "port": _INTERCEPTOR_PORT}]}
    return release.made("Service", "engine", spec, name=proxy)
