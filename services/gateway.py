"""The BentoML services, and the composition root: `bentoml serve services.gateway:Gateway`.

Gateway is the entry: it serves the HTTP app and starts the two others. Engine runs vLLM; tokens come from it over our own
HTTP client and never through `depends()`, which is there so that BentoML starts the engine and readiness follows it.
Embedder batches adaptively: it is a model that takes one item and gives one answer.
"""

from __future__ import annotations

import asyncio
import os  # noqa: TID251  to end a process that cannot start, and to hand the engine its key
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
import psutil
from bentoml.models import BentoModel

from accounts.audit import AuditFailed
from accounts.database import Database, SchemaMismatch
from accounts.keys import KeyStore
from adapters.gate import BaseModel, check_adapter
from adapters.registry import RegistryFile
from guards.detectors import Detectors
from guards.guard import Guard
from guards.injection import assess
from guards.names import open_names
from guards.onnx_classifier import OnnxClassifier
from guards.pii import ENTITIES, Span, find_pii
from models.layers import linear_layers
from rag.collection import GrowingCollection, Searchable
from rag.embedding import DIMENSIONS, CallableEmbeddings, MultilingualE5
from rag.files import Files
from rag.index import Recipe, UnusableIndex
from rag.plugins import BadPlugin
from rag.store import StoreError
from rag.uploads import Uploads
from services.api import EmbeddingModel, Parts, create_app
from services.auth import Auth
from services.bundle import Bundle, BundleError, LoadedBundle, load_bundle
from services.bundle import Uploads as UploadSettings
from services.caller import CallerHeaders
from services.child import end_group
from services.documents import Desk
from services.engine import command
from services.engine_client import EngineWatch
from services.files import Cabinet
from services.indexes import open_collection, open_index
from services.launch import engine_launch
from services.lock import LockError, read_lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.settings import SettingsError, load_settings
from services.slots import Shelf, Slots
from services.store import is_stored, stored_path
from services.telemetry import Telemetry, configure_logs, log, merge_metrics
from services.wiring import MissingVariable, engine_client, open_accounting, open_backends, open_caches, own_engine

try:
    settings = load_settings()
except SettingsError as error:
    raise SystemExit(f"the box cannot start: {error}") from None
lock = read_lock(settings.lock)
_DRAIN_SECONDS = 25  # BentoML kills the engine 30 s after its SIGTERM
_FOREVER: Any = {"max_requests": 10**9, "max_age": 1e9}  # BentoML's rotation of sessions kills requests under way


def _loaded() -> LoadedBundle:
    return load_bundle(settings.bundle, packed=True)


@bentoml.service(
    name="engine",
    workers=1,
    http={"proxy_port": settings.engine_port},
    endpoints={"livez": "/health", "readyz": "/health"},
    traffic={"timeout": 3600},
    runner_connection=_FOREVER,
)
class Engine:
    """Stock vLLM."""

    def __command__(self) -> list[str]:
        """Return vLLM's command line, and watch the child from now on."""
        launch = engine_launch(settings, lock, drain_seconds=_DRAIN_SECONDS)
        if settings.engine_token:
            os.environ["VLLM_API_KEY"] = settings.engine_token  # the child's too; everybody may read a command line
        threading.Thread(target=_end_with_child, name="engine-watch", daemon=True).start()
        return command(launch.arguments, launch.environment)


def _end_with_child() -> None:
    """End this worker when its child has died: BentoML would not notice, but starts anew a worker that ends."""
    me = psutil.Process()
    while not (children := me.children()):
        time.sleep(0.1)
    psutil.wait_procs(children)
    for child in children:
        end_group(child.pid)  # vLLM's engine core outlives its server, with all its memory
    me.terminate()
    time.sleep(15)
    me.kill()


@bentoml.service(name="embedder", workers=1, traffic={"timeout": 60}, runner_connection=_FOREVER)
class Embedder:
    """The embedding model; several callers share a batch."""

    def __init__(self) -> None:
        self._model = MultilingualE5()
        self._model.embed("warm", "query")

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=20_000)
    def embed(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Embed items of {"text", "kind"}; an item that fails answers {"error"} and leaves the others alone."""
        answers: list[dict[str, Any]] = []
        for item in items:
            try:
                embedded = self._model.embed(item["text"], item["kind"])
                answers.append({"vector": embedded.vector, "tokens": embedded.tokens})
            except Exception as error:  # noqa: BLE001  one item's fault must not fail the batch
                answers.append({"error": type(error).__name__})
        return answers


@bentoml.service(name="finder", workers=1, traffic={"timeout": 60}, runner_connection=_FOREVER)
class Finder:
    """The guards' models, for bundles that have any; several requests share a batch."""

    def __init__(self) -> None:
        names, injection = lock.names and stored_path(lock.names), lock.injection_model and stored_path(lock.injection_model)
        self._names = open_names(names) if names else None
        self._injection = OnnxClassifier(injection) if injection else None

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=20_000)
    def names(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return for each text {"spans": [[start, end, entity, score]]}; one that fails has {"error"}."""
        if self._names is None:
            return [{"error": "no model for names"} for _ in texts]
        try:
            return [{"spans": _plain(spans)} for spans in self._names.find_all(texts)]
        except Exception:  # noqa: BLE001  one text's fault must not fail the batch: now each by itself
            return [_alone(self._names.find, text) for text in texts]

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=20_000)
    def injection(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return for each text {"score"}; one that fails has {"error"}."""
        return [_scored(self._injection, text) for text in texts]


def _plain(spans: list[Span]) -> list[list[Any]]:
    return [[span.start, span.end, span.entity, span.score] for span in spans]


def _alone(find: Callable[[str], list[Span]], text: str) -> dict[str, Any]:
    try:
        return {"spans": _plain(find(text))}
    except Exception as error:  # noqa: BLE001  its own
        return {"error": type(error).__name__}


def _scored(model: OnnxClassifier | None, text: str) -> dict[str, Any]:
    if model is None:
        return {"error": "no model"}
    try:
        return {"score": model.score(text)}
    except Exception as error:  # noqa: BLE001  its own
        return {"error": type(error).__name__}


def _detectors(finder: Any, loop: asyncio.AbstractEventLoop) -> Detectors:
    """Return the guards' detectors; their models are asked in the service, from whatever thread a guard looks in."""

    def ask(api: str, text: str, field: str) -> Any:
        client = finder.to_async
        asked = asyncio.run_coroutine_threadsafe(getattr(client, api)([text]), loop)
        [answer] = asked.result(60)
        if "error" in answer:
            msg = f"{api} failed: {answer['error']}"
            raise RuntimeError(msg)
        return answer[field]

    def names(text: str) -> list[Span]:
        return [Span(*span) for span in ask("names", text, "spans")]

    def injection(text: str) -> float:
        return float(ask("injection", text, "score"))

    key = settings.hash_key or secrets.token_bytes(32)
    return Detectors(names if lock.names else None, injection if lock.injection_model else None, key)


@asynccontextmanager
async def compose() -> AsyncGenerator[Parts]:
    """Wire the parts; everything that differs from one bundle or machine to the next is decided here."""
    configure_logs()
    gateway = bentoml.get_current_service()
    loaded = _loaded()

    async def embed(text: str, kind: str) -> tuple[list[float], int]:
        [answer] = await gateway.embedder.to_async.embed([{"text": text, "kind": kind}])
        if "error" in answer:
            msg = f"the embedder failed: {answer['error']}"
            raise RuntimeError(msg)
        return answer["vector"], answer["tokens"]

    async def vector(text: str, kind: str) -> list[float]:
        return (await embed(text, kind))[0]

    embedder = loaded.bundle.embedder.name
    embeddings = CallableEmbeddings(vector, asyncio.get_running_loop())
    collections: dict[str, Searchable] = {
        name: open_collection(loaded, name, lock, embeddings) for name in loaded.bundle.collections
    }
    telemetry = Telemetry()
    # The first request would wait for Presidio's imports otherwise; /livez must not.
    warming = asyncio.create_task(asyncio.to_thread(_warm))
    detectors = _detectors(gateway.finder if lock.finders() else None, asyncio.get_running_loop())
    policies = Policies(loaded, detectors)
    desks: dict[str, Desk] = {}
    for name, entry in loaded.bundle.collections.items():
        if entry.uploads:
            desks[name] = _desk(loaded, name, entry.uploads, embeddings, policies)
            opened = partial(open_index, loaded, name, embeddings=embeddings)
            collections[name] = GrowingCollection(collections[name], desks[name].uploads, opened)
    async with engine_client(settings) as client:
        if not settings.engine_sleeps:
            gateway.watch = EngineWatch(client, settings.engine_grace_seconds)
        slots = Slots(
            RegistryFile(settings.registry(lock.name)), client, _shelf(loaded.bundle), telemetry,
            capacity=loaded.bundle.engine.adapter_slots,
            wake_seconds=settings.engine_wake_seconds if settings.engine_sleeps else None,
        )  # fmt: skip
        engine = own_engine(client, slots, settings)
        routes = Routes(loaded, lock, slots, policies)
        slots.watch(lambda: telemetry.routes(list(routes.all.values()), slots.tags))
        gateway.slots = slots
        token = settings.admin_token.get_secret_value() if settings.admin_token else None
        async with (
            slots.running(lock.adapter_versions()),
            aclosing(Database(settings.database)) as database,
            _doorkeeper(loaded.bundle, database, telemetry) as auth,
            open_accounting(loaded.bundle, settings, telemetry, database) as accounting,
            open_backends(loaded.bundle, engine, telemetry) as backends,
            open_caches(loaded.bundle, settings, telemetry, partial(vector, kind="query")) as caches,
        ):
            pipeline = Pipeline(routes, engine, telemetry, collections, detectors, accounting, backends, caches)
            embedding = EmbeddingModel(embedder, DIMENSIONS, embed)
            files = Files(settings.files(lock.name), most=settings.max_files, most_bytes=settings.max_file_bytes)
            yield Parts(
                pipeline, embedding, settings.max_body_bytes, slots, token, auth, desks, Cabinet(files),
                settings.keepalive_seconds,
            )  # fmt: skip
    await warming
    for collection in collections.values():
        collection.close()


@asynccontextmanager
async def started() -> AsyncGenerator[Parts]:
    """Enter `compose`, and tell in one line what the bundle or this machine lacks: BentoML would print its stack, twice."""
    async with AsyncExitStack() as stack:
        try:
            parts = await stack.enter_async_context(compose())
        except (
            BundleError,
            LockError,
            MissingVariable,
            AuditFailed,
            UnusableIndex,
            StoreError,
            BadPlugin,
            SchemaMismatch,
        ) as error:
            log.critical("the box cannot start", problem=str(error))
            os._exit(1)
        yield parts


@asynccontextmanager
async def _doorkeeper(bundle: Bundle, database: Database, telemetry: Telemetry) -> AsyncGenerator[Auth]:
    """Who is let in. A box that lets everybody in opens no database until somebody sends a key."""

    async def keys() -> KeyStore:
        return KeyStore(await database.engine())

    told = bundle.callers
    auth = Auth(
        keys, callers=CallerHeaders(told.tenant_header, told.roles_header), anonymous=told.anonymous,
        away=lambda away: telemetry.degraded("keys", away=away),
    )  # fmt: skip
    if told.anonymous is False:
        await auth.ready()
    yield auth


def _desk(loaded: LoadedBundle, name: str, settled: UploadSettings, embeddings: CallableEmbeddings, policies: Policies) -> Desk:
    """Where callers hand in documents of a collection; the replicas that share the state directory have the same ones."""
    entry = loaded.bundle.collections[name]

    def check(text: str) -> str | None:
        return Guard(policies.get(entry.policy), policies.detectors).review_passage(text) if entry.policy else text

    recipe = Recipe(entry.chunk_characters, loaded.bundle.embedder.name, policies.get(entry.policy).label if entry.policy else "")
    folder = settings.uploads(lock.name, name)
    return Desk(Uploads(folder, recipe, embeddings, check, settled.max_documents), frozenset(settled.writers))


def _warm() -> None:
    find_pii("0", ENTITIES, 1.0)
    assess("warm")


def _shelf(bundle: Bundle) -> Shelf:
    """The model store as the slots know it, with the gate before it."""
    model = stored_path(lock.model)
    base = BaseModel(bundle.model.source, linear_layers(model), model)

    def folder(name: str, version: str) -> Path | None:
        tag = lock.adapter_tag(name, version)
        return stored_path(tag) if is_stored(tag) else None

    return Shelf(folder, lock.adapter_tag, partial(check_adapter, base=base, max_lora_rank=bundle.engine.max_lora_rank))


app = create_app(started)


# No build tools: everything in the lock is a wheel. uv.toml leaves out what a text model on a CPU never imports.
image = (
    bentoml.images.Image(base_image="python:3.11-slim", distro="none", lock_python_packages=False)
    .run("apt-get update && apt-get install -y --no-install-recommends libnuma1 libgomp1 && rm -rf /var/lib/apt/lists/*")
    .build_include("uv.toml")
)


@bentoml.service(
    name=lock.name,
    image=image,
    workers=1,
    traffic={"timeout": 3600},
    labels={"openai_endpoint": "/v1"},
    metrics={"duration": {"buckets": [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0]}},
)
@bentoml.asgi_app(app, path="/")
class Gateway:
    """The OpenAI-compatible API."""

    embedder = bentoml.depends(Embedder)
    if lock.finders():
        finder = bentoml.depends(Finder)
    if settings.engine_url is None:
        engine = bentoml.depends(Engine)
    watch: EngineWatch | None = None
    slots: Slots | None = None

    async def __is_alive__(self) -> bool:
        """Liveness: fails when the engine beside it was up and stays away; a new start would heal no engine elsewhere."""
        return self.watch is None or settings.engine_url is not None or await self.watch.alive()

    async def __is_ready__(self) -> bool:
        """Readiness: the engine answers, and holds its adapters; one that sleeps is not asked."""
        if self.slots is None or not (self.watch is None or await self.watch.ready()):
            return False
        return self.slots.ready()

    async def __metrics__(self, content: str) -> str:
        """Append the engine's own metrics, those that are not here already."""
        if self.watch is None:
            return content
        return merge_metrics(content, await self.watch.engine.metrics())


# What a service names here is exported with the Bento and looked for before it starts.
Engine.models.extend(BentoModel(tag) for tag in (*lock.models(), *lock.adapters.values()))
Gateway.models.extend(BentoModel(tag) for tag in lock.indexes.values())
Finder.models.extend(BentoModel(tag) for tag in lock.finders())

__all__ = ["Embedder", "Engine", "Finder", "Gateway", "app"]
