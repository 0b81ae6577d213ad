"""BentoCloud's deployment file: the gateway stays, the engine scales from zero, secrets by name, a canary by weight."""

from __future__ import annotations

from typing import Any

from deploy.release import Release, without_none


def bentocloud(release: Release) -> dict[str, Any]:
    """Return the content of the file for `bentoml deploy -f`."""
    told, box = release.environment, release.box
    cloud = told.bentocloud
    services: dict[str, Any] = {
        box.gateway_service or box.name: {
            "instance_type": cloud.gateway_instance,
            "scaling": {"min_replicas": told.gateway.replicas.min, "max_replicas": told.gateway.replicas.max},
            "deployment_strategy": "RollingUpdate",
        }
    }
    for name in box.services:
        is_engine = name == "engine"
        replicas = told.engine.replicas if is_engine else told.gateway.replicas
        services[name] = without_none({
            "instance_type": cloud.engine_instance if is_engine else cloud.gateway_instance,
            "scaling": {"min_replicas": replicas.min, "max_replicas": replicas.max},
            "deployment_strategy": "RollingUpdate",
            "cold_start_timeout": told.wake_seconds if is_engine and told.sleeps else None,
        })  # fmt: skip
    services["engine"]["config_overrides"] = {"traffic": {"concurrency": release.concurrency}}
    settings = {**({"EKIBEN_ENGINE_URL": cloud.engine_url} if cloud.engine_url else {}), **told.settings}
    content: dict[str, Any] = {
        "name": told.name or box.name,
        "bento": box.tag,
        "cluster": cloud.cluster,
        "access_authorization": not box.open_to_all,
        "envs": [{"name": name, "value": value} for name, value in sorted(settings.items())],
        "secrets": list(cloud.secrets),
        "services": services,
    }
    if canary := told.canary:
        content["bento"] = canary.stable
        version = {"bento": box.tag, "weight": canary.percent, "secrets": list(cloud.secrets), "services": services}
        content["canary"] = {"route_type": "random", "versions": {"canary": without_none(version)}}
    return without_none(content)
