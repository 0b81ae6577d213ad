"""The KServe target: the engine as the predictor of an InferenceService in KServe's Knative mode."""

from __future__ import annotations

from deploy import network
from deploy.engine import container, nodes
from deploy.gateway import gateway
from deploy.monitoring import monitoring
from deploy.release import ENGINE_PORT, Manifest, Release, without_none
from deploy.storage import engine_volumes

SERVICE = "serving.kserve.io/inferenceservice"


def kserve(release: Release) -> dict[str, list[Manifest]]:
    """Return the objects by file."""
    told = release.environment
    name = release.named("engine")
    callers = [network.pods(release, "gateway"), *network.namespaces(told.network.knative)]
    peer = {"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(told.network.knative)}
    ]}}  # fmt: skip
    return {
        "gateway": gateway(release, f"http://{name}-predictor.{told.namespace}.svc.cluster.local"),
        "engine": [_service(release)],
        "network": [network.gateway(release, peer, None), network.engine(release, callers, any_port=True)],
        "monitoring": monitoring(release, {"engine": {SERVICE: name}}),
    }


def _service(release: Release) -> Manifest:
    told = release.environment
    contained = {**container(release, port_name="http1", probed=ENGINE_PORT), "name": "kserve-container"}

    predictor = without_none({
        "minReplicas": told.engine.replicas.min,
        "maxReplicas": told.engine.replicas.max,
        "scaleMetric": "concurrency",
        "scaleTarget": release.concurrency,
        "containerConcurrency": told.engine.saturation or release.box.saturation,
        "timeout": told.wake_seconds + told.longest_stream_seconds,
        "canaryTrafficPercent": told.canary.percent if told.canary else None,
        "labels": release.labels("engine"),
        "annotations": {
            "autoscaling.knative.dev/scale-to-zero-pod-retention-period": f"{told.engine.idle_seconds}s",
            "serving.knative.dev/progress-deadline": f"{told.wake_seconds + 60}s",
        },
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": [{"name": name} for name in told.pull_secrets],
        "nodeSelector": nodes(release),
        "tolerations": list(told.engine.tolerations),
        "containers": [contained],
        "volumes": engine_volumes(release)[0],
    })  # fmt: skip
    return release.made(
        "InferenceService", "engine", {"predictor": predictor}, api="serving.kserve.io/v1beta1",
        annotations={"serving.kserve.io/deploymentMode": "Knative"}, labels={"networking.kserve.io/visibility": "cluster-local"},
    )  # fmt: skip
