"""NetworkPolicies: who may come to a pod, and where it may go. What is not named here is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from deploy.release import ENGINE_PORT, GATEWAY_PORT, Component, Manifest, Release

_POSTGRESQL, _REDIS, _HTTP, _HTTPS, _API = 5432, 6379, 80, 443, (443, 6443)
_NAMESPACE = "kubernetes.io/metadata.name"
_DNS = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}

Peer = dict[str, Any]


def pods(release: Release, component: Component) -> Peer:
    """Return the pods of a component, as a peer."""
    return {"podSelector": {"matchLabels": release.selector(component)}}


def namespaces(names: Iterable[str]) -> list[Peer]:
    """Return all pods of namespaces, as peers."""
    return [{"namespaceSelector": {"matchLabels": {_NAMESPACE: name}}} for name in names]


def gateway(release: Release, engine: Peer, port: int | None) -> Manifest:
    """Return the gateway's policy; `engine` is what stands before the engine, `port` where it listens (None: on several)."""
    told = release.environment
    come = [_rule("from", namespaces(told.ingress.namespaces), [GATEWAY_PORT])]
    if told.monitoring.enabled:
        come.append(_rule("from", namespaces([told.monitoring.namespace]), [GATEWAY_PORT]))
    go = [_DNS, _rule("to", [engine], [port] if port else [])]
    if servers := _servers(release):
        go.append(_rule("to", [], servers))
    return _policy(release, "gateway", come, go)


def engine(release: Release, callers: list[Peer], *, any_port: bool = False) -> Manifest:
    """Return the engine's policy: from the gateway, or what stands between, alone; and nowhere but to names' server.

    `any_port` is for Knative, whose sidecar listens on ports of its own.
    """
    told = release.environment
    come = [_rule("from", callers, [] if any_port else [ENGINE_PORT])]
    if told.monitoring.enabled:
        come.append(_rule("from", namespaces([told.monitoring.namespace]), [ENGINE_PORT]))
    return _policy(release, "engine", come, [_DNS])


def activator(release: Release) -> Manifest:
    """Return the activator's policy: from the gateway, to the engine and to the API server, whose address nobody knows here."""
    told = release.environment
    come = [_rule("from", [pods(release, "gateway")], [ENGINE_PORT])]
    if told.monitoring.enabled:
        come.append(_rule("from", namespaces([told.monitoring.namespace]), [ENGINE_PORT]))
    servers = sorted({*_API, *told.network.egress_ports})
    go = [_DNS, _rule("to", [pods(release, "engine")], [ENGINE_PORT]), _rule("to", [], servers)]
    return _policy(release, "activator", come, go)


def download(release: Release) -> Manifest:
    """Return the policy of the job that brings weights: out to the port of its URL, and nobody in."""
    told = release.environment
    ports = set(told.network.egress_ports)
    if told.weights.download:
        url = urlsplit(told.weights.download.url)
        ports.add(url.port or (_HTTPS if url.scheme == "https" else _HTTP))
    return _policy(release, "weights", [], [_DNS, _rule("to", [], sorted(ports))])


def _servers(release: Release) -> list[int]:
    told = release.environment
    ports = {*release.box.ports, *told.network.egress_ports}
    if told.secrets.database_url:
        ports.add(_POSTGRESQL)
    if told.secrets.redis_url:
        ports.add(_REDIS)
    if told.secrets.alert_webhook:
        ports.add(_HTTPS)
    return sorted(ports)


def _rule(way: str, peers: list[Peer], ports: Iterable[int]) -> dict[str, Any]:
    rule: dict[str, Any] = {way: peers} if peers else {}
    if listed := [{"protocol": "TCP", "port": port} for port in ports]:
        rule["ports"] = listed
    return rule


def _policy(release: Release, component: Component, come: list[dict[str, Any]], go: list[dict[str, Any]]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": release.selector(component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": come,
        "egress": go,
    }
    return release.made("NetworkPolicy", component, spec, api="networking.k8s.io/v1")
