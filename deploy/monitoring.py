"""Prometheus Operator's objects: what it reads, and what it alerts on."""

from __future__ import annotations

from typing import Any

from deploy.release import ENGINE_PORT, Component, Manifest, Release
from deploy.rules import rules

_API = "monitoring.coreos.com/v1"


def monitoring(release: Release, scraped: dict[Component, dict[str, str]]) -> list[Manifest]:
    """Return the monitors and rules, where they are wanted.

    `scraped` are the components whose pods are read beside the gateway: their labels. A pod that is not there is not asked, so
    nothing wakes an engine.
    """
    told = release.environment.monitoring
    if not told.enabled:
        return []
    endpoint = {"path": "/metrics", "interval": "15s"}
    spec: dict[str, Any] = {"selector": {"matchLabels": release.selector("gateway")}, "endpoints": [{"port": "http", **endpoint}]}
    made = [release.made("ServiceMonitor", "gateway", spec, api=_API, labels=told.labels)]
    for component, labels in scraped.items():
        # By number: Knative gives the port a name of its own.
        path = "/activator/metrics" if component == "activator" else "/metrics"
        read: dict[str, Any] = {
            "selector": {"matchLabels": labels},
            "podMetricsEndpoints": [{"portNumber": ENGINE_PORT, **endpoint, "path": path}],
        }
        made.append(release.made("PodMonitor", component, read, api=_API, labels=told.labels))
    groups = rules(release.box, first_token_seconds=told.first_token_seconds)
    return [*made, release.made("PrometheusRule", "gateway", {"groups": groups}, api=_API, labels=told.labels)]
