"""What must be there before what was rendered is applied, and what comes after: the first key, the ingress's time-outs."""

from __future__ import annotations

from deploy.fitting import Target
from deploy.release import Release
from deploy.storage import state_claim, weights_claim

_NEEDS = {
    "keda": "KEDA and its HTTP add-on (ScaledObject, InterceptorRoute)",
    "knative": "Knative Serving (Service of serving.knative.dev)",
    "kserve": "KServe and Knative Serving (InferenceService)",
}


def notes(release: Release, target: Target) -> list[str]:
    """Return what who applies it must know, a line each, in the order in which it is wanted."""
    if target == "compose":
        return _compose(release)
    return [] if target == "bentocloud" else _cluster(release, target)


def secrets(release: Release) -> dict[str, tuple[str, str]]:
    """Return the Secret and its key of each variable that comes from one."""
    told = release.environment.secrets
    given = {**({"EKIBEN_ENGINE_KEY": told.engine_key} if told.engine_key else {}), **told.settings(), **told.variables}
    return {name: (reference.name, reference.key) for name, reference in given.items()}


def variables(release: Release) -> list[str]:
    """Return the variables that compose takes from `.env`."""
    theirs = {"EKIBEN_REDIS_URL", "EKIBEN_DATABASE_URL"}
    return ["EKIBEN_ENGINE_KEY", "POSTGRES_PASSWORD", *sorted(set(secrets(release)) - theirs - {"EKIBEN_ENGINE_KEY"})]


def example(release: Release) -> str:
    """Return `.env.example` for compose: every variable that `.env` must have."""
    head = (
        "# Copy it to .env, for yourself alone (chmod 600), and fill it in.\n"
        "# A key of our own making is `openssl rand -hex 24`. POSTGRES_PASSWORD stands in a URL: take hex for it too.\n"
    )
    return head + "".join(f"{name}=\n" for name in variables(release))


def _cluster(release: Release, target: Target) -> list[str]:
    told = release.environment
    space = told.namespace
    made = [f"namespace {space} must be there: kubectl create namespace {space}"]
    made += [
        f"Secret {name} in {space} must have the key {key} ({variable})" for variable, (name, key) in secrets(release).items()
    ]
    made += [f"Secret {name} in {space} must log in to the image's registry" for name in told.pull_secrets]
    if told.host and told.ingress.tls_secret and not told.ingress.gateway:
        made.append(
            f"Secret {told.ingress.tls_secret} in {space} must have the certificate of {told.host} (type kubernetes.io/tls)"
        )
    made += [f"the cluster must have {one}" for one in _kinds(release, target)]
    made += _claims(release)
    if told.host:
        made.append(
            f"the ingress must wait {_answer_seconds(release)} s for an answer (nginx: proxy-read-timeout; 60 s unless raised)"
        )
    gateway = f"deployment/{release.named('gateway')}"
    made.append(f"when it is applied: kubectl -n {space} wait --for=condition=Available {gateway} --timeout=10m")
    return [*made, *_first_key(release, f"kubectl -n {space} exec {gateway} -c gateway --")]


def _kinds(release: Release, target: Target) -> list[str]:
    told = release.environment
    made = [_NEEDS[target]] if target in _NEEDS else []
    if told.gateway.replicas.max > told.gateway.replicas.min:
        made.append("metrics-server, by which the gateway's HorizontalPodAutoscaler sees processors")
    if told.monitoring.enabled:
        made.append("Prometheus Operator (ServiceMonitor, PodMonitor, PrometheusRule)")
    if told.host and told.ingress.gateway:
        made.append(f"Gateway API (HTTPRoute), and the Gateway {told.ingress.gateway}")
    elif told.host:
        made.append(f"an ingress controller in the namespace {' or '.join(told.ingress.namespaces)}")
    return made


def _claims(release: Release) -> list[str]:
    told = release.environment
    made: list[str] = []
    if told.state.claim:
        made.append(f"claim {told.state.claim} must be there, for the state")
    elif told.state.size:
        made.append(_made(state_claim(release), told.state.access, told.state.storage_class, "state"))
    elif told.secrets.database_url is None:
        made.append("no state is kept: API keys and spend go with the pod (state.size, or secrets.database_url)")
    if told.weights.claim:
        made.append(f"claim {told.weights.claim} must be there, for the weights")
    elif told.weights.source == "download":
        made.append(_made(weights_claim(release), told.weights.access, told.weights.storage_class, "weights"))
    if told.engine.compile_cache:
        made.append(f"claim {told.engine.compile_cache} must be there, for what is compiled")
    return made


def _made(name: str | None, access: str, storage_class: str | None, section: str) -> str:
    place = f"the storage class {storage_class}" if storage_class else "the cluster's default storage class"
    return f"claim {name} is made: {place} must give {access} volumes (else {section}.storage_class, {section}.access)"


def _answer_seconds(release: Release) -> int:
    told = release.environment
    return told.answer_seconds if told.sleeps else told.longest_stream_seconds


def _compose(release: Release) -> list[str]:
    return [
        f"cp .env.example .env, and fill in {', '.join(variables(release))}",
        f"the image {release.environment.image} must be on this machine, or in a registry that it can pull from",
        "docker compose up --wait",
        *_first_key(release, "docker compose exec gateway"),
    ]


def _first_key(release: Release, within: str) -> list[str]:
    if release.box.open_to_all:
        return []
    return [f"the first API key: {within} python -m services.cli keys create --name me --owner me"]
