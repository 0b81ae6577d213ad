"""Volumes: weights by image, claim or image volume, the gateway's state, caches; and the job that fills a claim with weights."""

from __future__ import annotations

from typing import Any

from deploy.release import MODELS, SHARED_MEMORY, STATE, Manifest, Release, container_security, pod_security

Volumes = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Volumes of a pod, and where its container has them."""
_JOB_TRIES = 3
_JOB_KEPT_SECONDS = 86400


def weights_claim(release: Release) -> str:
    """Return the claim that holds the weights; a canary's are of its own version."""
    return release.environment.weights.claim or f"{release.stable_name}-weights-{release.box.version[:10]}"


def state_claim(release: Release) -> str:
    """Return the claim of the state folder; a canary shares the stable release's."""
    return release.environment.state.claim or f"{release.stable_name}-state"


def weights(release: Release) -> Volumes:
    """Return the volume of models, adapters and indexes; none where they are in the image."""
    told = release.environment.weights
    mounts = [{"name": "weights", "mountPath": MODELS, "readOnly": True}]
    if told.source == "image":
        return [], []
    if told.source == "image-volume":
        return [{"name": "weights", "image": {"reference": told.image, "pullPolicy": "IfNotPresent"}}], mounts
    return [{"name": "weights", "persistentVolumeClaim": {"claimName": weights_claim(release), "readOnly": True}}], mounts


def gateway_volumes(release: Release) -> Volumes:
    """Return the gateway's volumes: everything else of its file system can only be read."""
    kept = release.environment.state.kept
    state = {"persistentVolumeClaim": {"claimName": state_claim(release)}} if kept else {"emptyDir": {}}
    volumes, mounts = weights(release)
    return (
        [_folder("tmp"), {"name": "state", **state}, *volumes],
        [_mount("tmp", "/tmp"), _mount("state", STATE), *mounts],  # noqa: S108  a mount
    )


def engine_volumes(release: Release) -> Volumes:
    """Return the engine's volumes; memory that processes share counts as the container's."""
    cache = release.environment.engine.compile_cache
    compiled = {"persistentVolumeClaim": {"claimName": cache}} if cache else {"emptyDir": {}}
    volumes, mounts = weights(release)
    return (
        [_folder("tmp"), {"name": "cache", **compiled}, {"name": "shm", "emptyDir": {"medium": "Memory"}}, *volumes],
        [_mount("tmp", "/tmp"), _mount("cache", STATE), _mount("shm", SHARED_MEMORY), *mounts],  # noqa: S108  a mount
    )


def claims(release: Release) -> list[Manifest]:
    """Return the claims that are made, not those that are there already."""
    environment, made = release.environment, []
    told = environment.weights
    if told.source == "download" and told.claim is None:
        name = weights_claim(release)
        made.append(
            release.made("PersistentVolumeClaim", "weights", _claim(told.access, told.size, told.storage_class), name=name)
        )
    state = environment.state
    if state.size and not state.claim and not release.canary:
        made.append(
            release.made(
                "PersistentVolumeClaim",
                "gateway",
                _claim(state.access, state.size, state.storage_class),
                name=state_claim(release),
            )
        )
    return made


def download(release: Release) -> list[Manifest]:
    """Return the job that fills the weights' claim; named by its spec, since a job can never be changed. It goes after a day."""
    told = release.environment.weights
    if told.source != "download" or told.download is None:
        return []
    arguments = ["python", "-m", "deploy.download", told.download.url, "--sha256", told.download.sha256, "--into", MODELS]
    claim = {"name": "weights", "persistentVolumeClaim": {"claimName": weights_claim(release)}}
    pod: dict[str, Any] = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "download",
                "image": release.environment.image,
                "args": arguments,
                "workingDir": "/home/bentoml/bento/src",
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "securityContext": container_security(),
                "volumeMounts": [_mount("tmp", "/tmp"), _mount("weights", MODELS)],  # noqa: S108  a mount
            }
        ],
        "volumes": [_folder("tmp"), claim],
    }
    if secrets := release.environment.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in secrets]
    spec = {
        "backoffLimit": _JOB_TRIES,
        "ttlSecondsAfterFinished": _JOB_KEPT_SECONDS,
        "template": {"metadata": {"labels": release.labels("weights")}, "spec": pod},
    }
    name = f"{release.named('weights')}-{release.ending(spec)}"
    return [release.made("Job", "weights", spec, api="batch/v1", name=name)]


def _claim(access: str, size: str | None, storage_class: str | None) -> dict[str, Any]:
    told = {"storageClassName": storage_class} if storage_class else {}
    return {"accessModes": [access], "resources": {"requests": {"storage": size}}, **told}


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "emptyDir": {}}


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": path}
