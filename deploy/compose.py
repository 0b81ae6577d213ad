"""docker compose: the box on one machine, its engine behind the activator, with Redis, PostgreSQL, Qdrant and Prometheus."""

from __future__ import annotations

from typing import Any

from deploy import release as made
from deploy.engine import SOURCE
from deploy.plain import activate
from deploy.quantity import amount
from deploy.release import ENGINE_PORT, GATEWAY_PORT, MODELS, STATE, Release, without_none
from deploy.rules import rules

_BEHIND_PORT = ENGINE_PORT + 1
"""Where vLLM listens in the engine's container, behind the activator."""
_QDRANT_PORT = 6333
_REQUIRED = ":?set it in .env, as .env.example says"


def compose(release: Release) -> dict[str, Any]:
    """Return the files' contents: compose.yaml, and Prometheus's configuration and rules."""
    told = release.environment
    services = {
        "gateway": _gateway(release),
        "engine": _engine(release),
        "redis": {
            "image": told.compose.redis,
            "command": ["redis-server", "--save", "", "--appendonly", "no"],
            "healthcheck": _healthy(["CMD", "redis-cli", "ping"]),
            **_kept(),
        },
        "postgres": {
            "image": told.compose.postgres,
            "environment": {"POSTGRES_USER": "ekiben", "POSTGRES_DB": "ekiben", "POSTGRES_PASSWORD": _given("POSTGRES_PASSWORD")},
            "healthcheck": _healthy(["CMD", "pg_isready", "-U", "ekiben"]),
            "volumes": ["postgres:/var/lib/postgresql/data"],
            **_kept(),
        },
        "qdrant": {
            "image": told.compose.qdrant,
            "environment": {"QDRANT__SERVICE__API_KEY": "${QDRANT_API_KEY:-}"},
            "volumes": ["qdrant:/qdrant/storage"],
            # Only for bundles whose collections are there.
            **({} if _QDRANT_PORT in release.box.ports else {"profiles": ["qdrant"]}),
            **_kept(),
        },
        "prometheus": {
            "image": told.compose.prometheus,
            "volumes": [
                *(f"./{name}:/etc/prometheus/{name}:ro" for name in ("prometheus.yml", "rules.yml")),
                "prometheus:/prometheus",
            ],
            **_kept(),
        },
    }
    volumes: dict[str, Any] = {volume: {} for volume in ("state", "cache", "postgres", "qdrant", "prometheus")}
    if told.weights.source == "pvc":
        volumes["weights"] = {"external": True, "name": told.weights.claim}
    return {
        "compose.yaml": {"name": release.name, "services": services, "volumes": volumes},
        "prometheus.yml": _prometheus(sleeps=told.sleeps),
        "rules.yml": {"groups": rules(release.box, first_token_seconds=told.monitoring.first_token_seconds)},
    }


def _gateway(release: Release) -> dict[str, Any]:
    told = release.environment
    secrets = {name: _given(name) for name in [*told.secrets.settings(), *told.secrets.variables]}
    variables = {
        "EKIBEN_CACHE_DIR": made.CACHE,
        "EKIBEN_STATE_DIR": STATE,
        "EKIBEN_ENGINE_URL": f"http://engine:{ENGINE_PORT}",
        "EKIBEN_DEVICE": "cpu",
        **({"EKIBEN_ENGINE_SLEEPS": "true", "EKIBEN_ENGINE_WAKE_SECONDS": str(told.answer_seconds)} if told.sleeps else {}),
        **told.settings,
        **secrets,
        "EKIBEN_ENGINE_KEY": _given("EKIBEN_ENGINE_KEY"),
        "EKIBEN_REDIS_URL": "redis://redis:6379",
        "EKIBEN_DATABASE_URL": f"postgresql://ekiben:{_given('POSTGRES_PASSWORD')}@postgres/ekiben",
    }
    ready = {"condition": "service_healthy"}
    return {
        **_contained(release, told.gateway.resources.memory, told.gateway.resources.cpu),
        "environment": dict(sorted(variables.items())),
        "ports": [f"{told.compose.address}:{GATEWAY_PORT}"],
        "depends_on": {"redis": ready, "postgres": ready, "engine": {"condition": "service_started"}},
        "healthcheck": _healthy(_asked(GATEWAY_PORT, "/readyz"), start=120),
        "volumes": [f"state:{STATE}", *_weights(release)],
    }


def _engine(release: Release) -> dict[str, Any]:
    told = release.environment
    serve = ["python", "-m", "services.cli", "engine", "serve"]
    command = (
        activate(upstream=f"http://127.0.0.1:{_BEHIND_PORT}", release=release, start=["--command", " ".join(serve)])
        if told.sleeps
        else serve
    )
    variables = {
        "EKIBEN_CACHE_DIR": made.CACHE,
        "EKIBEN_DEVICE": "cuda" if told.engine.gpu else "cpu",
        "EKIBEN_ENGINE_DRAIN_SECONDS": str(told.longest_stream_seconds),
        "EKIBEN_ENGINE_HOST": "127.0.0.1" if told.sleeps else "0.0.0.0",  # noqa: S104  the container's own network
        "EKIBEN_ENGINE_PORT": str(_BEHIND_PORT if told.sleeps else ENGINE_PORT),
        "EKIBEN_ENGINE_KEY": _given("EKIBEN_ENGINE_KEY"),
        **made.CACHES,
    }
    contained = _contained(release, told.engine.resources.memory, told.engine.resources.cpu)
    if gpu := told.engine.gpu:
        device = {"driver": "nvidia", "count": gpu.count, "capabilities": ["gpu"]}
        contained["deploy"]["resources"]["reservations"] = {"devices": [device]}
    return {
        **contained,
        "command": command,
        "working_dir": SOURCE,
        "environment": dict(sorted(variables.items())),
        "shm_size": "1gb",
        "healthcheck": _healthy(_asked(ENGINE_PORT, "/health"), start=0 if told.sleeps else told.start_seconds),
        "volumes": [f"cache:{STATE}", *_weights(release)],
    }


def _contained(release: Release, memory: str, cpu: str) -> dict[str, Any]:
    """Return how a container of the box is kept: as on a cluster."""
    limits = {"memory": str(int(amount(memory))), "cpus": str(float(amount(cpu)))}
    return {
        "image": release.environment.image, **_kept(), "user": f"{made.USER}:{made.USER}", "read_only": True,
        "tmpfs": ["/tmp"], "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],  # noqa: S108  a mount
        "stop_grace_period": f"{release.environment.drain_seconds}s", "deploy": {"resources": {"limits": limits}},
    }  # fmt: skip


def _kept() -> dict[str, str]:
    return {"restart": "unless-stopped"}


def _weights(release: Release) -> list[str]:
    return [f"weights:{MODELS}:ro"] if release.environment.weights.source == "pvc" else []


def _given(name: str) -> str:
    return f"${{{name}{_REQUIRED}}}"


def _asked(port: int, path: str) -> list[str]:
    return ["CMD", "python", "-IS", f"{SOURCE}/deploy/health.py", f"http://127.0.0.1:{port}{path}"]


def _healthy(test: list[str], *, start: int = 0) -> dict[str, Any]:
    return without_none(
        {"test": test, "interval": "10s", "timeout": "6s", "retries": 3, "start_period": f"{start}s" if start else None}
    )


def _prometheus(*, sleeps: bool) -> dict[str, Any]:
    engine = {"static_configs": [{"targets": [f"engine:{ENGINE_PORT}"]}]}
    jobs = [
        {"job_name": "gateway", "static_configs": [{"targets": [f"gateway:{GATEWAY_PORT}"]}]},
        {"job_name": "activator", "metrics_path": "/activator/metrics", **engine} if sleeps else {"job_name": "engine", **engine},
    ]
    return {"global": {"scrape_interval": "15s"}, "rule_files": ["/etc/prometheus/rules.yml"], "scrape_configs": jobs}
