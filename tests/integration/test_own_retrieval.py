"""The example of a loader and a retriever in docs/documents.md, as a user runs it and as a box serves it."""

import json
import os  # noqa: TID251  a store of one's own for the commands
import re
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from guards.detectors import Detectors
from rag.embedding import MultilingualE5
from services.api import EmbeddingModel, Parts, create_app
from services.auth import Auth
from services.bundle import load_bundle
from services.caller import CallerHeaders
from services.indexes import open_collection
from services.lock import Lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.slots import Served
from services.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "documents.md").read_text(encoding="utf-8").partition("## Your own loader")[2].partition("\n## ")[0]
BUNDLE = """name: own
model: {name: m, source: 'pypi:m==1'}
prompts: {p: {path: p.yaml}}
policies: {g: {path: g.yaml}}
routes:
  tickets: {prompt: p, policy: g, collection: tickets}
  live: {prompt: p, policy: g, collection: live}
"""
ROWS = [
    (1, "The lift of acme is stuck since Monday.", "acme"), (2, "The lift of globex squeaks.", "globex"),
    (3, "Mail ann@example.com about the lift of acme.", "acme"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    [settings] = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    [module] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    (tmp_path / "bundle.yaml").write_text(BUNDLE + settings)
    (tmp_path / "tickets.py").write_text(module)
    (tmp_path / "p.yaml").write_text("system: s\nuser: '{{ passages }} {{ question }}'\n")
    (tmp_path / "g.yaml").write_text("passages: [{detector: pii, action: mask}]\n")
    (tmp_path / "bundle.lock").write_text(json.dumps({"name": "own", "model": "m:1"}))
    with closing(sqlite3.connect(tmp_path / "tickets.db")) as database, database:
        database.execute("CREATE TABLE tickets (number INTEGER, text TEXT, tenant TEXT)")
        database.executemany("INSERT INTO tickets VALUES (?, ?, ?)", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("tickets", None)


@pytest.fixture
def ekiben(folder):
    def ekiben(*arguments, code=0):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENTOML_HOME": str(folder / "bentoml"), "COLUMNS": "300"}
        command = [sys.executable, "-m", "services.cli", *arguments, "--bundle", str(folder / "bundle.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
        assert done.returncode == code, done.stderr
        return done

    return ekiben


def excerpts(done):
    return {source["source"]: source["excerpt"] for source in json.loads(done.stdout)}


def test_the_commands(ekiben, folder):
    ekiben("check")
    report = json.loads(ekiben("rag", "ingest", "tickets", "--json").stdout)
    assert report["new"] == ["tickets#1", "tickets#2", "tickets#3"]
    acme = ("lift", "--tenant", "acme", "--json")
    assert set(excerpts(ekiben("rag", "search", "tickets", *acme))) == {"tickets#1", "tickets#3"}
    assert excerpts(ekiben("rag", "search", "live", *acme)) == {"ticket 1": ROWS[0][1], "ticket 3": ROWS[2][1]}
    assert len(excerpts(ekiben("rag", "search", "live", "lift", "--json"))) == 3
    assert "has no index" in ekiben("rag", "ingest", "live", code=1).stderr

    (folder / "tickets.db").unlink()
    for arguments in (("ingest", "tickets"), ("search", "live", "lift")):
        told = ekiben("rag", *arguments, code=1).stderr
        assert "no such table: tickets" in told
        assert "Traceback" not in told
    (folder / "tickets.py").unlink()
    assert "cannot be imported" in ekiben("check", code=1).stderr


class Engine:
    """Repeats what it is shown."""

    async def complete(self, path, payload):
        message = {"role": "assistant", "content": payload["messages"][-1]["content"] + " [1]"}
        return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


class Adapters:
    def choose(self, shares, key):
        return Served("", "", ())


@pytest.fixture
async def http(folder):
    loaded = load_bundle(folder / "bundle.yaml")
    lock = Lock(name="own", model="m:1")
    detectors, adapters = Detectors(), Adapters()
    routes = Routes(loaded, lock, adapters, Policies(loaded, detectors))
    live = open_collection(loaded, "live", lock, MultilingualE5())
    pipeline = Pipeline(routes, Engine(), Telemetry(CollectorRegistry()), {"live": live}, detectors)

    @asynccontextmanager
    async def compose():
        auth = Auth(callers=CallerHeaders("x-tenant", "x-roles"), anonymous=True)
        yield Parts(pipeline, EmbeddingModel("e5", 384, None), 100_000, slots=adapters, auth=auth)

    app = create_app(compose)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://b") as http,
    ):
        yield http


ASKED = {"model": "live", "messages": [{"role": "user", "content": "lift"}]}
ACME = {"x-tenant": "acme"}


async def test_a_box_answers_from_it(http):
    """Guarded, cited, and for the caller's tenant."""
    answer = (await http.post("/v1/chat/completions", json=ASKED, headers=ACME)).raise_for_status().json()

    said = answer["choices"][0]["message"]["content"]
    assert "stuck since Monday" in said
    assert "squeaks" not in said
    assert "<EMAIL_ADDRESS>" in said
    assert [(one["source"], one["cited"]) for one in answer["ekiben"]["sources"]] == [("ticket 1", True), ("ticket 3", True)]
    found = await http.post("/v1/rag/search", json={"model": "live", "query": "lift"}, headers={"x-tenant": "globex"})
    assert [one["text"] for one in found.json()["data"]] == [ROWS[1][1]]


async def test_a_box_whose_retriever_fails_says_so(http, folder):
    (folder / "tickets.db").unlink()
    answer = await http.post("/v1/chat/completions", json=ASKED, headers=ACME)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "retrieval_unavailable")
    assert "tickets" not in answer.text
