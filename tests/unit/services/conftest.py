"""A small bundle, an engine that answers as told, and adapters for it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.manifest import Manifest, read_manifest, write_manifest
from adapters.registry import RegistryFile
from guards.detectors import Detectors
from services.bundle import load_bundle
from services.errors import EngineRefused, EngineUnavailable
from services.lock import Lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.slots import Served, Shelf, Slots
from services.telemetry import Telemetry

BUNDLE = """
name: box
model: {name: tiny, source: "pypi:tiny==1"}
prompts:
  plain: {path: plain.yaml}
  docs: {path: docs.yaml}
policies:
  safe: {path: safe.yaml}
  open: {path: open.yaml}
collections:
  papers: {path: papers}
routes:
  chat: {prompt: plain, policy: safe, parameters: {temperature: 0.5, max_tokens: 9}}
  free: {prompt: plain, policy: open}
  ask: {prompt: docs, policy: safe, collection: papers}
"""
# After BUNDLE: its last section is that of the routes.
ADAPTED = """
  travel: {prompt: plain, policy: open, adapter: travel, parameters: {max_tokens: 9}}
  intent: {prompt: plain, policy: open, adapter: travel, only_labels: true}
  split: {prompt: plain, policy: open, adapter: {travel: 90, travel@canary: 10}}
adapters:
  travel: {path: travel}
"""
FILES = {
    "plain.yaml": "system: Be kind.\n",
    "docs.yaml": "system: Use the passages.\nuser: '{{ passages }} | {{ question }}'\n",
    "safe.yaml": """
input: [{detector: injection, action: block, threshold: 0.99}, {detector: pii, action: mask}]
passages: [{detector: injection, action: drop}]
output: [{detector: pii, action: mask}]
""",
    "open.yaml": "",
    "papers/a.md": "# A\nText.\n",
}


@pytest.fixture
def bundle_folder(tmp_path):
    (tmp_path / "papers").mkdir()
    for name, text in {"bundle.yaml": BUNDLE, **FILES}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


class FakeEngine:
    """Answers with the pieces it was given, and remembers what it was asked."""

    def __init__(self) -> None:
        self.pieces: list[str] = ["Hello", " there"]
        self.events: list[dict[str, Any]] | None = None
        self.answers: list[Any] = []
        """What it answers first, one after the other: a text, a body, an error, or "slow"."""
        self.error: Exception | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0

    async def complete(self, path, payload):
        self.asked.append((path, payload))
        if self.error:
            raise self.error
        text = self.answers.pop(0) if self.answers else "".join(self.pieces)
        if text == "slow":
            await asyncio.sleep(60)
        if isinstance(text, Exception):
            raise text
        if isinstance(text, dict):
            return text
        said = {"message": {"role": "assistant", "content": text}} if "chat" in path else {"text": text}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {"id": "x", "model": "internal", "choices": [{"index": 0, "finish_reason": "stop", **said}], "usage": usage}

    async def stream(self, path, payload) -> AsyncGenerator[dict[str, Any]]:
        self.asked.append((path, payload))
        try:
            for event in self.events or self.made(path):
                yield event
            if self.error:
                raise self.error
        finally:
            self.closed += 1

    def made(self, path):
        for number, piece in enumerate(self.pieces):
            last = "stop" if number == len(self.pieces) - 1 and not self.error else None
            said = {"delta": {"content": piece}} if "chat" in path else {"text": piece}
            yield {"id": "x", "model": "internal", "choices": [{"index": 0, "finish_reason": last, **said}]}
        yield {"id": "x", "model": "internal", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


class FakeCollection:
    """Finds what it was given."""

    def __init__(self) -> None:
        self.passages = []
        self.asked = []
        self.error = None

    async def search(self, question, access, top_k=None):
        self.asked.append((question, access))
        if self.error:
            raise self.error
        return self.passages

    def fit(self, passages, question=""):
        from rag.context import Context

        return Context(tuple(passages))


class FakeAdapters:
    """Serves the versions it was given, in turn."""

    def __init__(self) -> None:
        self.served = [Served("travel@1111111111111111", "box-adapter-travel:1111111111111111", ("book", "cancel"))]
        self.error: Exception | None = None
        self.asked: list[tuple[dict[str, float], str | None]] = []

    def choose(self, shares, key):
        self.asked.append((dict(shares), key))
        if self.error:
            raise self.error
        return self.served[(len(self.asked) - 1) % len(self.served)]

    def describe(self, shares):
        return [{"reference": reference, "share": share} for reference, share in shares.items()]


class LoraEngine:
    """An engine as far as its adapters go: holds names, can be down, slow, and spoilt by a name."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.up = True
        self.spoilt: dict[str, Exception | float] = {}
        """What a name's generation comes to: an error, or a probability that is no number."""
        self.refused: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.at_once = self.most_at_once = 0

    async def adapters(self):
        self._here()
        return frozenset(self.names)

    async def load_adapter(self, name, folder):
        self.calls.append(("load", name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(60 if name in self.hangs else 0.001)
        finally:
            self.at_once -= 1
        self._here()
        assert (folder / "ekiben.json").is_file()
        if name in self.refused:
            raise self.refused[name]
        self.names.add(name)

    async def unload_adapter(self, name):
        self.calls.append(("unload", name))
        self._here()
        self.names.discard(name)

    async def complete(self, path, payload):
        self._here()
        name = payload["model"]
        self.calls.append(("complete", name))
        if name not in self.names:
            raise EngineRefused(f"The model {name} does not exist.", status=404)
        spoilt = self.spoilt.get(name)
        if isinstance(spoilt, Exception):
            raise spoilt
        logprobs = [-0.5, -0.1, spoilt or -0.2]
        return {"choices": [{"text": "The end", "logprobs": {"token_logprobs": logprobs}}]}

    def loads(self):
        return [name for call, name in self.calls if call == "load"]

    def _here(self) -> None:
        if not self.up:
            raise EngineUnavailable("The engine is not up.")


class Library:
    """Versions of adapters in a folder, with a gate that refuses what it was told to."""

    def __init__(self, root) -> None:
        self.root = root
        self.refused: dict[str, Exception] = {}

    def put(self, name, *versions, labels=()):
        for version in versions:
            folder = self.root / f"{name}@{version}"
            folder.mkdir(parents=True)
            manifest = Manifest(name=name, base_source="b", dataset="d", system_prompt="s", sha256="0" * 64, labels=list(labels))
            write_manifest(folder, manifest)

    def shelf(self):
        def folder(name, version):
            path = self.root / f"{name}@{version}"
            return path if path.is_dir() else None

        def check(path):
            if path.name in self.refused:
                raise self.refused[path.name]
            return read_manifest(path)

        return Shelf(folder, lambda name, version: f"box-adapter-{name}:{version}", check)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def papers():
    return FakeCollection()


@pytest.fixture
def adapters():
    return FakeAdapters()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def pipeline(bundle_folder, engine, papers, registry, adapters):
    loaded = load_bundle(bundle_folder / "bundle.yaml")
    lock = Lock(name="box", model="tiny:1", indexes={"papers": "box-index-papers:1"})
    return Pipeline(
        Routes(loaded, lock, adapters, Policies(loaded, Detectors())), engine, Telemetry(registry), {"papers": papers}
    )


@pytest.fixture
def adapted(bundle_folder, engine, registry, adapters, papers):
    """The pipeline with routes that an adapter answers; it is packed, so its folder is not asked for."""
    path = bundle_folder / "bundle.yaml"
    path.write_text(BUNDLE.rstrip() + ADAPTED, encoding="utf-8")
    tags = {"travel": "box-adapter-travel:1111111111111111"}
    lock = Lock(name="box", model="tiny:1", adapters=tags, indexes={"papers": "box-index-papers:1"})
    loaded = load_bundle(path, packed=True)
    routes = Routes(loaded, lock, adapters, Policies(loaded, Detectors()))
    return Pipeline(routes, engine, Telemetry(registry), {"papers": papers})


@pytest.fixture
def lora_engine():
    return LoraEngine()


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "store")


@pytest.fixture
def state_file(tmp_path):
    return RegistryFile(tmp_path / "state" / "adapters.json")


@pytest.fixture
def slots(state_file, lora_engine, library, registry):
    return Slots(state_file, lora_engine, library.shelf(), Telemetry(registry), capacity=3)
