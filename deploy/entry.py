"""How callers from outside come to the gateway: an Ingress, or an HTTPRoute whose weights give a canary its share."""

from __future__ import annotations

from typing import Any

from deploy.release import GATEWAY_PORT, Manifest, Release, without_none


def entry(release: Release) -> list[Manifest]:
    """Return the Ingress or the HTTPRoute of a host; nothing without one."""
    told = release.environment
    if told.host is None:
        return []
    return [_route(release) if told.ingress.gateway else _ingress(release)]


def _ingress(release: Release) -> Manifest:
    told = release.environment
    backend = {"service": {"name": release.named("gateway"), "port": {"name": "http"}}}
    spec: dict[str, Any] = {
        "ingressClassName": told.ingress.class_name,
        "rules": [{"host": told.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    }
    if secret := told.ingress.tls_secret:
        spec["tls"] = [{"hosts": [told.host], "secretName": secret}]
    return release.made(
        "Ingress", "gateway", without_none(spec), api="networking.k8s.io/v1", annotations=told.ingress.annotations
    )


def _route(release: Release) -> Manifest:
    told = release.environment
    namespace, _, name = (told.ingress.gateway or "").rpartition("/")
    backends = [{"name": f"{release.stable_name}-gateway", "port": GATEWAY_PORT}]
    if release.canary and told.canary:
        share = told.canary.percent
        backends = [
            {**backends[0], "weight": 100 - share},
            {"name": release.named("gateway"), "port": GATEWAY_PORT, "weight": share},
        ]
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": backends,
        # An answer may stream for as long as it likes; the gateway has deadlines of its own.
        "timeouts": {"request": "0s"},
    }
    spec = {"parentRefs": [without_none({"namespace": namespace, "name": name})], "hostnames": [told.host], "rules": [rule]}
    name = f"{release.stable_name}-gateway"
    return release.made("HTTPRoute", "gateway", spec, api="gateway.networking.k8s.io/v1", name=name)
