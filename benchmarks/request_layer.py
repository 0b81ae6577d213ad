"""The gateway's HTTP app as `services.gateway` composes it, without BentoML and without an embedding model.

`uvicorn benchmarks.request_layer:app`, with EKIBEN_* as for the box.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

from accounts.database import Database
from accounts.keys import KeyStore
from adapters.gate import AdapterError
from adapters.registry import RegistryFile
from guards.detectors import Detectors
from rag.embedding import DIMENSIONS
from services.api import EmbeddingModel, Parts, create_app
from services.auth import Auth
from services.bundle import load_bundle
from services.engine_client import EngineClient
from services.lock import read_lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.settings import load_settings
from services.slots import Shelf, Slots
from services.telemetry import Telemetry, configure_logs
from services.wiring import open_accounting, open_backends, open_caches


async def _embed(_text: str, _kind: str = "query") -> tuple[list[float], int]:
    raise RuntimeError("no embedding model here")


async def _vector(text: str) -> list[float]:
    return (await _embed(text))[0]


def _no_adapter(*_: object) -> None:
    raise AdapterError("no adapters here")


@asynccontextmanager
async def compose() -> AsyncGenerator[Parts]:
    """Wire the parts."""
    configure_logs()
    settings = load_settings()
    lock, loaded = read_lock(settings.lock), load_bundle(settings.bundle, packed=True)
    telemetry, detectors = Telemetry(), Detectors()
    async with EngineClient(settings.engine) as engine:
        shelf = Shelf(lambda _name, _version: None, lock.adapter_tag, _no_adapter)  # pyright: ignore[reportArgumentType]
        slots = Slots(RegistryFile(settings.registry(lock.name)), engine, shelf, telemetry, capacity=1)
        routes = Routes(loaded, lock, slots, Policies(loaded, detectors))
        slots.watch(lambda: telemetry.routes(list(routes.all.values()), slots.tags))
        async with (
            slots.running({}),
            aclosing(Database(settings.database)) as database,
            open_accounting(loaded.bundle, settings, telemetry, database) as accounting,
            open_backends(loaded.bundle, engine, telemetry) as backends,
            open_caches(loaded.bundle, settings, telemetry, _vector) as caches,
        ):

            async def keys() -> KeyStore:
                return KeyStore(await database.engine())

            pipeline = Pipeline(routes, engine, telemetry, {}, detectors, accounting, backends, caches)
            embedding = EmbeddingModel(loaded.bundle.embedder.name, DIMENSIONS, _embed)
            yield Parts(pipeline, embedding, settings.max_body_bytes, slots, auth=Auth(keys))


app = create_app(compose)
