"""The Knative target: the engine as a Knative Service of the cluster alone, which holds requests while it is at zero."""

from __future__ import annotations

from typing import Any

from deploy import network
from deploy.engine import container, nodes
from deploy.gateway import gateway
from deploy.monitoring import monitoring
from deploy.release import ENGINE_PORT, Manifest, Release, without_none
from deploy.storage import engine_volumes

SERVICE = "serving.knative.dev/service"


def knative(release: Release) -> dict[str, list[Manifest]]:
    """Return the objects by file."""
    told = release.environment
    name = release.named("engine")
    callers = [network.pods(release, "gateway"), *network.namespaces(told.network.knative)]
    return {
        "gateway": gateway(release, f"http://{name}.{told.namespace}.svc.cluster.local"),
        "engine": [_service(release)],
        "network": [
            network.gateway(release, _ingress(release), None),
            network.engine(release, callers, any_port=True),
        ],
        "monitoring": monitoring(release, {"engine": {SERVICE: name}}),
    }


def timeouts(release: Release) -> dict[str, int]:
    """Return a revision's deadlines: the start and the longest stream, for an answer that is not streamed begins at its end.

    A cluster allows up to its max-revision-timeout-seconds (600 unless raised).
    """
    whole = release.environment.wake_seconds + release.environment.longest_stream_seconds
    return {"responseStartTimeoutSeconds": whole, "timeoutSeconds": whole}


def _ingress(release: Release) -> network.Peer:
    # Knative's ingress and its activator stand before every revision.
    names = list(release.environment.network.knative)
    return {
        "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]}
    }


def _service(release: Release) -> Manifest:
    told = release.environment
    scaling = {
        "autoscaling.knative.dev/metric": "concurrency",
        "autoscaling.knative.dev/target": str(release.concurrency),
        "autoscaling.knative.dev/target-utilization-percentage": "100",
        "autoscaling.knative.dev/min-scale": str(told.engine.replicas.min),
        "autoscaling.knative.dev/max-scale": str(told.engine.replicas.max),
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": f"{told.engine.idle_seconds}s",
        "serving.knative.dev/progress-deadline": f"{told.wake_seconds + 60}s",
    }
    contained = container(release, port_name="http1", probed=ENGINE_PORT)

    spec = without_none({
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Beyond what saturates it the engine would only queue: what comes waits before it, and may go to another.
        "containerConcurrency": release.box.saturation if told.engine.saturation is None else told.engine.saturation,
        **timeouts(release),
        "imagePullSecrets": [{"name": name} for name in told.pull_secrets],
        "nodeSelector": nodes(release),
        "tolerations": list(told.engine.tolerations),
        "containers": [contained],
        "volumes": engine_volumes(release)[0],
    })  # fmt: skip
    metadata: dict[str, Any] = {"labels": release.labels("engine"), "annotations": scaling}
    traffic: list[dict[str, Any]] = [{"latestRevision": True, "percent": 100}]
    if told.canary:
        # Only what is named in the traffic has a name of ours: Knative refuses a change under the name that there was.
        metadata["name"] = f"{release.named('engine')}-{release.box.version[:10]}-{release.ending(scaling, spec)}"
        traffic = [
            {"revisionName": told.canary.stable, "percent": 100 - told.canary.percent},
            {"revisionName": metadata["name"], "percent": told.canary.percent, "tag": "canary"},
        ]
    labels = {"networking.knative.dev/visibility": "cluster-local"}
    service = {"template": {"metadata": metadata, "spec": spec}, "traffic": traffic}
    return release.made("Service", "engine", service, api="serving.knative.dev/v1", labels=labels)
