"""A small bundle, and an engine that answers as told."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.bundle import load_bundle
from services.lock import Lock
from services.pipeline import Pipeline
from services.routing import Routes
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
FILES = {
    "plain.yaml": "system: Be kind.\n",
    "docs.yaml": "system: Use the passages.\nuser: '{{ passages }} | {{ question }}'\n",
    "safe.yaml": "",
    "open.yaml": "input: {pii: {action: allow}, injection: {action: allow}}\noutput: {pii: {action: allow}}\n",
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
        self.error: Exception | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0

    async def complete(self, path, payload):
        self.asked.append((path, payload))
        if self.error:
            raise self.error
        text = "".join(self.pieces)
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

    async def search(self, question):
        self.asked.append(question)
        if self.error:
            raise self.error
        return self.passages

    def fit(self, passages):
        from rag.chain import Context

        return Context(tuple(passages))


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def papers():
    return FakeCollection()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def pipeline(bundle_folder, engine, papers, registry):
    loaded = load_bundle(bundle_folder / "bundle.yaml")
    lock = Lock(name="box", model="tiny:1", indexes={"papers": "box-index-papers:1"})
    return Pipeline(Routes(loaded, lock), engine, Telemetry(registry), {"papers": papers})
