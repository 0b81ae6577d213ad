"""A box and its environments, for tests of what is rendered."""

import copy

import yaml

from deploy.box import Box
from deploy.environment import Environment, Weights
from deploy.rendering import render

CLUSTERS = ("knative", "keda", "kserve", "plain")
CLOUD = {"secrets": ["llm"], "engine_url": "https://engine.example.com"}
SMALL = {
    "image": "registry.example.com/ekiben:1",
    "secrets": {"engine_key": {"name": "ekiben", "key": "engine-key"}},
    "bentocloud": CLOUD,
}
"""The least that a cluster and BentoCloud need."""
LARGE = {
    "image": "registry.example.com:5000/team/ekiben:0123456789abcdef",
    "name": "support",
    "namespace": "llm",
    "host": "llm.example.com",
    "pull_secrets": ["registry"],
    "longest_stream_seconds": 900,
    "settings": {"EKIBEN_MAX_BODY_BYTES": "1048576"},
    "gateway": {
        "replicas": {"min": 2, "max": 6}, "resources": {"cpu": 1, "memory": "4Gi"}, "node_selector": {"pool": "small"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    },
    "engine": {
        "replicas": {"min": 0, "max": 4}, "resources": {"cpu": "8", "memory": "24Gi"}, "gpu": {"count": 1, "memory": "24Gi"},
        "cold_start_seconds": 80, "provision_seconds": 120, "saturation": 48, "idle_seconds": 900,
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "queue_metric": "vllm_num_requests_waiting",
        "compile_cache": "compiled",
    },
    "weights": {
        "source": "download", "size": "20Gi", "storage_class": "fast",
        "download": {"url": "https://models.example.com/ekiben.tar.gz", "sha256": "0a" * 32},
    },
    "state": {"size": "5Gi"},
    "secrets": {
        **{name: {"name": "ekiben", "key": name.replace("_", "-")} for name in (
            "engine_key", "admin_token", "guard_key", "audit_key", "audit_text_key", "database_url", "redis_url", "alert_webhook",
        )},
        "variables": {"TWIN_KEY": {"name": "upstreams", "key": "twin"}},
    },
    "ingress": {
        "class_name": "nginx", "tls_secret": "llm-tls", "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
    },
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}, "prometheus": "http://prometheus.monitoring:9090"},
    "bentocloud": CLOUD,
}  # fmt: skip
"""Everything that there is."""


def box(**more):
    facts = {
        "name": "ekiben", "version": "0123456789abcdef", "model": "small:1", "recipe": "w8a8", "cpus": {"amd64": (), "arm64": ()},
        "weights_bytes": 200 * 2**20, "saturation": 64, "routes": ("assistant",),
    }  # fmt: skip
    return Box.model_validate({**facts, **more})


def environment(base=None, **more):
    return Environment.model_validate(merged(SMALL if base is None else base, more))


def merged(base, more):
    """Nested mappings, those of `more` over those of `base`; None takes a key away."""
    made = copy.deepcopy(base)
    for key, value in more.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = (
                merged(made.get(key, {}), value) if isinstance(value, dict) and isinstance(made.get(key, {}), dict) else value
            )
    return made


def fitted(target, told):
    """The same, with weights that compose can mount."""
    pvc = {"weights": Weights(source="pvc", claim="models")} if target == "compose" else {}
    return told.model_copy(update=pvc)


def objects(target, told=None, facts=None):
    """The objects that are rendered, as Kubernetes would read them."""
    made = render(facts or box(), told or environment(), target)
    return [one for text in made.files.values() for one in yaml.safe_load_all(text)]


def pick(made, kind, name):
    found = [one for one in made if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pods(made):
    """(object, pod template) of everything that has one."""
    for one in made:
        if one["kind"] in {"Deployment", "Job"} or one["apiVersion"] == "serving.knative.dev/v1":
            yield one, one["spec"]["template"]
        elif one["kind"] == "InferenceService":
            predictor = one["spec"]["predictor"]
            yield one, {"metadata": {"labels": predictor["labels"]}, "spec": predictor}
