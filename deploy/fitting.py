"""Whether a box fits where it is to be served: told before anything is rendered, all at once, each with what to change."""

from __future__ import annotations

import re
from typing import Literal, get_args

from deploy.box import Box
from deploy.environment import Environment
from deploy.measured import outdated
from deploy.quantity import amount, gib

Target = Literal["knative", "keda", "kserve", "plain", "compose", "bentocloud"]
TARGETS: tuple[Target, ...] = get_args(Target)
_CLUSTER = frozenset({"knative", "keda", "kserve", "plain"})
_BESIDE: frozenset[Target] = frozenset({"plain", "keda"})
"""Where a canary is a second gateway."""
_GPU_SHARE = 0.8
"""Of a GPU's memory, for weights; the rest is the KV cache's at least."""
_NOT_IN_CLOUD = ("image", "namespace", "host", "pull_secrets", "weights", "state", "ingress", "monitoring", "network", "compose")
_KNATIVE_TIMEOUT, _KNATIVE_START_TIMEOUT = 600, 300
_LONGEST_NAME = 36
"""With `-canary-weights-` and a digest's beginning behind it, a name has 63 characters at most."""


class DoesNotFit(ValueError):
    """A box that cannot be served there; `lines` says why, and what to change."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def check(box: Box, environment: Environment, target: Target) -> list[str]:
    """Return what should be known before it is applied; raises DoesNotFit."""
    problems = [*_name(box, environment), *_device(box, environment), *_memory(box, environment), *_secrets(box, environment)]
    if target in _CLUSTER:
        problems += [*_weights(box, environment), *_scaling(environment, target), *_sharing(box, environment, target)]
    elif target == "compose":
        problems += _mounted(environment)
    problems += _cloud(environment) if target == "bentocloud" else []
    problems += _canary(environment, target)
    if problems:
        raise DoesNotFit(problems)
    return _advice(box, environment, target)


def _name(box: Box, environment: Environment) -> list[str]:
    name = environment.name or box.name
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= _LONGEST_NAME:
        return []
    return [
        f"name: {name!r} cannot begin the names of a cluster's objects: take a-z, 0-9 and -, up to {_LONGEST_NAME} characters"
    ]


def _device(box: Box, environment: Environment) -> list[str]:
    engine = environment.engine
    if engine.gpu:
        if engine.gpu.count != box.gpus:
            return [
                f"engine.gpu.count: {engine.gpu.count}, and the bundle's engine takes {box.gpus}: write that, or change "
                f"its parallel sizes"
            ]
        return []
    if not box.cpus:
        return [
            f"the recipe {box.recipe} is for GPUs, and the engine's nodes have none: add engine.gpu, or pack with another recipe"
        ]
    if engine.architecture not in box.cpus:
        others = ", ".join(sorted(box.cpus))
        return [f"engine.architecture: {engine.architecture} cannot run the recipe {box.recipe}; {others} can"]
    if (flags := box.cpus[engine.architecture]) and not engine.node_selector:
        labels = ", ".join(f"feature.node.kubernetes.io/cpu-cpuid.{flag.upper()}" for flag in flags)
        return [f"the recipe {box.recipe} needs CPUs with {', '.join(flags)}: name nodes that have them in "
                f"engine.node_selector (Node Feature "
                f"Discovery's labels: {labels})"]  # fmt: skip
    return []


def _memory(box: Box, environment: Environment) -> list[str]:
    problems: list[str] = []
    engine = environment.engine
    if engine.gpu:
        least = box.weights_bytes + box.engine_bytes // 2
        whole = engine.gpu.memory and amount(engine.gpu.memory) * engine.gpu.count
        if whole and box.weights_bytes > _GPU_SHARE * float(whole):
            problems.append(
                f"engine.gpu.memory: {engine.gpu.count} x {engine.gpu.memory}, and the weights alone are "
                f"{gib(box.weights_bytes)}: "
                "take larger GPUs, more of them, or a smaller recipe"
            )
    else:
        least = box.engine_bytes
    if amount(engine.resources.memory) < least:
        problems.append(
            f"engine.resources.memory: {engine.resources.memory}, and this bundle's engine wants {gib(least)} at least "
            f"({gib(box.weights_bytes)} "
            f"of weights{f', {gib(box.cache_bytes)} of KV cache' if box.cache_bytes else ''}): give it more, or lower "
            "engine.kv_cache_memory_bytes in bundle.yaml"
        )
    if amount(environment.gateway.resources.memory) < box.gateway_bytes:
        problems.append(
            f"gateway.resources.memory: {environment.gateway.resources.memory}, and a gateway wants "
            f"{gib(box.gateway_bytes)} at least"
        )
    return problems


def _weights(box: Box, environment: Environment) -> list[str]:
    told = environment.weights
    if told.size and amount(told.size) < box.weights_bytes:
        return [f"weights.size: {told.size}, and the weights are {gib(box.weights_bytes)}: a larger volume is wanted"]
    return []


def _mounted(environment: Environment) -> list[str]:
    source = environment.weights.source
    if source in {"image", "pvc"}:
        return []
    return [
        f"weights.source: compose has no {source}: bring the weights to a volume and name it (source: pvc, claim: VOLUME), "
        "or keep them in the image"
    ]


def _scaling(environment: Environment, target: Target) -> list[str]:
    engine, problems = environment.engine, []
    if target == "plain" and engine.replicas.max > 1 and engine.replicas.min != engine.replicas.max and not engine.queue_metric:
        problems.append(
            f"engine.replicas.max: {engine.replicas.max}, and the plain target scales between 0 and 1 by itself: give "
            f"engine.queue_metric (a custom "
            "metric of the cluster), or take keda or knative"
        )
    if (
        target == "plain"
        and engine.replicas.min == 0
        and engine.gpu is None
        and engine.idle_seconds < environment.start_seconds // 3
    ):
        problems.append(
            f"engine.idle_seconds: {engine.idle_seconds} is less than one start takes; the engine would spend its time "
            f"starting: raise it"
        )
    if environment.secrets.engine_key is None:
        problems.append(
            "secrets.engine_key: is missing; an engine that others in the cluster can reach has a key: kubectl create "
            "secret generic "
            "NAME --from-literal=engine-key=$(openssl rand -hex 24), and name it here"
        )
    return problems


def _secrets(box: Box, environment: Environment) -> list[str]:
    given = environment.secrets
    missing = [name for name in box.variables if name not in given.variables]
    problems = [f"secrets.variables: bundle.yaml asks for {name}, and no Secret is named for it" for name in missing]
    if box.sealed_texts and given.audit_text_key is None:
        problems.append(
            "secrets.audit_text_key: bundle.yaml keeps encrypted texts in the audit trail, which does not start without their key"
        )
    return problems


def _sharing(box: Box, environment: Environment, target: Target) -> list[str]:
    problems: list[str] = []
    several = environment.gateway.replicas.max > 1 or (environment.canary is not None and target in _BESIDE)
    if several and environment.secrets.database_url is None and not box.open_to_all:
        problems.append("secrets.database_url: is missing, and each of several gateways would have keys and spend of its own")
    if box.keeps_state and not environment.state.kept:
        problems.append(
            f"state: the bundle keeps {' and '.join(box.keeps_state)} there, which would go with the pod: give claim, or "
            f"size to make one"
        )
    if several and environment.state.size and environment.state.access == "ReadWriteOnce":
        problems.append(
            "state.access: ReadWriteOnce is for one node, and there may be several gateways: ReadWriteMany, or one gateway"
        )
    engines = environment.engine.replicas.max > 1 or several
    if engines and environment.weights.source == "download" and environment.weights.access == "ReadWriteOnce":
        problems.append(
            "weights.access: ReadWriteOnce is for one node, and there may be several pods: ReadWriteMany, or an image volume"
        )
    return problems


def _cloud(environment: Environment) -> list[str]:
    problems: list[str] = []
    told, cloud = environment.secrets, environment.bentocloud
    wanted = [*(["EKIBEN_ENGINE_KEY"] if told.engine_key else []), *told.settings(), *told.variables]
    if wanted and not cloud.secrets:
        problems.append(
            f"bentocloud.secrets: is missing, and {', '.join(wanted)} would not be set: make a secret of type env there "
            "(bentoml secret create), and name it here"
        )
    if not cloud.engine_url and "EKIBEN_ENGINE_URL" not in environment.settings:
        problems.append(
            "bentocloud.engine_url: is missing, and the gateway, a deployment of its own there, would look for the engine on its "
            "own machine: give the URL of the engine's deployment"
        )
    return problems


def _canary(environment: Environment, target: Target) -> list[str]:
    if not (canary := environment.canary):
        return []
    if target == "compose":
        return ["canary: compose has none; take a cluster, or leave it out"]
    if target in _BESIDE:
        if environment.host and environment.ingress.gateway:
            return []
        return [
            f"canary: {target} divides requests by the weights of an HTTPRoute: give host and ingress.gateway, or take "
            f"knative or kserve"
        ]
    if target in {"knative", "bentocloud"} and not canary.stable:
        return [
            f"canary.stable: is missing; {'the name of the revision' if target == 'knative' else 'the tag of the Bento'} "
            f"that answers the rest"
        ]
    return []


def _advice(box: Box, environment: Environment, target: Target) -> list[str]:
    advice: list[str] = []
    if target == "bentocloud":
        unused = [name for name in _NOT_IN_CLOUD if name in environment.model_fields_set]
        advice.append(f"BentoCloud does not take these of the environment file: {', '.join(unused)}")
    elif not re.search(r":[^/]+$|@", environment.image):
        advice.append(f"image: {environment.image} has neither tag nor digest: what `latest` is changes; name the version")
    several = environment.gateway.replicas.max > 1
    if target in _CLUSTER and several and environment.secrets.redis_url is None:
        advice.append("secrets.redis_url: without it each gateway counts limits for itself, and has a cache of its own")
    if target in _CLUSTER and not several:
        advice.append("gateway.replicas.max: 1; while its node is drained there is none for the time of a start")
    longest = environment.wake_seconds + environment.longest_stream_seconds
    if target in {"knative", "kserve"} and longest > _KNATIVE_TIMEOUT:
        advice.append(f"Knative's max-revision-timeout-seconds must be {longest} or more (config-defaults; 600 unless raised)")
    if target == "kserve" and longest > _KNATIVE_START_TIMEOUT:
        advice.append(
            f"Knative's revision-response-start-timeout-seconds must be {longest} or more (config-defaults; 300 unless "
            "raised): an InferenceService has no field for it"
        )
    if target in {"knative", "kserve"}:
        advice.append(
            "Knative must allow what the engine's pods ask for (config-features: " + ", ".join(_features(environment)) + ")"
        )
    advice += _outdated(box, environment)
    if environment.secrets.audit_key is None and "audit" in box.keeps_state:
        advice.append("secrets.audit_key: without it who can write the state folder can forge the audit trail")
    return advice


def _outdated(box: Box, environment: Environment) -> list[str]:
    if (measurement := environment.measurement) is None:
        return []
    engine = environment.engine
    told = outdated(measurement, box.engine, device="cuda" if engine.gpu else "cpu", cpu=float(amount(engine.resources.cpu)))
    if not told:
        return []
    return [f"engine.measured: {engine.measured} is of another engine ({'; '.join(told)}): run `ekiben deploy measure` again"]


def _features(environment: Environment) -> list[str]:
    features = ["kubernetes.podspec-nodeselector", "kubernetes.podspec-volumes-emptydir"]
    if environment.engine.tolerations:
        features.append("kubernetes.podspec-tolerations")
    if environment.weights.source == "image-volume":
        features.append("kubernetes.podspec-volumes-image")
    if environment.weights.source in {"pvc", "download"} or environment.engine.compile_cache:
        features.append("kubernetes.podspec-persistent-volume-claim")
    return features
