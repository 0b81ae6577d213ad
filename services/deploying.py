"""A bundle's facts for its deployment, from bundle.yaml, bundle.lock and the model store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import JsonValue

from deploy.box import Box
from services.advice import VARIABLE
from services.bundle import Bundle
from services.lock import Lock
from services.recipes import RECIPES, RecipeName
from services.store import stored_path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PORTS = {"postgresql": 5432, "https": 443, "http": 80}


def box_of(bundle: Bundle, lock: Lock, version: str) -> Box:
    """Return the facts of a packed bundle; raises LockError for what is not in the store."""
    servers = [upstream.url for upstream in bundle.upstreams.values()]
    servers += [collection.store for collection in bundle.collections.values() if collection.store]
    engine = bundle.engine
    return Box(
        name=bundle.name,
        version=version,
        services=("engine", "embedder", *(["finder"] if lock.finders() else [])),
        model=lock.model,
        recipe=bundle.model.quantization.recipe,
        cpus=_cpus([bundle.model.quantization.recipe, *([engine.draft.quantization.recipe] if engine.draft else [])]),
        gpus=engine.tensor_parallel_size * engine.pipeline_parallel_size * engine.data_parallel_size,
        weights_bytes=sum(_bytes(stored_path(tag)) for tag in lock.tags()),
        cache_bytes=engine.kv_cache_memory_bytes,
        saturation=engine.max_num_seqs,
        engine=engine_facts(bundle, lock),
        routes=tuple(bundle.routes),
        variables=_variables(bundle),
        ports=tuple(sorted({_port(url) for url in servers})),
        open_to_all=bundle.callers.anonymous is True,
        keeps_state=tuple(_kept(bundle)),
        sealed_texts=bundle.audit.texts == "encrypted",
    )


def engine_facts(bundle: Bundle, lock: Lock) -> dict[str, JsonValue]:
    """Return what the speed of a bundle's engine follows from, beside the machine: models, adapters, arguments that are set."""
    models: dict[str, JsonValue] = {"model": lock.model, "draft": lock.draft, "adapters": len(lock.adapters)}
    return models | bundle.engine.model_dump(mode="json", exclude_none=True)


def _cpus(recipes: list[RecipeName]) -> dict[str, tuple[str, ...]]:
    """Return the architectures that can run all recipes, with the flags that they need there."""
    needs = [RECIPES[recipe].cpus or {} for recipe in recipes]
    return {
        theirs: tuple(sorted(frozenset[str]().union(*(need[ours] for need in needs))))
        for ours, theirs in _ARCHITECTURES.items()
        if all(ours in need for need in needs)
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _variables(bundle: Bundle) -> tuple[str, ...]:
    texts = [upstream.key for upstream in bundle.upstreams.values() if upstream.key]
    texts += [collection.store for collection in bundle.collections.values() if collection.store]
    return tuple(sorted({name for text in texts for name in VARIABLE.findall(text)}))


def _port(url: str) -> int:
    # A password's ${VARIABLE} would be taken for a port.
    parts = urlsplit(VARIABLE.sub("", url))
    return parts.port or _PORTS[parts.scheme]


def _kept(bundle: Bundle) -> list[str]:
    kept = ["the audit trail"] if bundle.audit.enabled else []
    if any(collection.uploads for collection in bundle.collections.values()):
        kept.append("documents that callers add")
    return kept
