"""An assistant over the documents of two tenants with three roles: real index, real embedding model, the HTTP app."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from itertools import product

import httpx
import pytest
from prometheus_client import CollectorRegistry

from accounts.database import open_database
from accounts.keys import KeyStore, NewKey
from guards.detectors import Detectors
from rag.collection import Collection, GrowingCollection
from rag.embedding import MultilingualE5
from rag.index import Recipe, UnusableIndex, build_index
from rag.survey import Place
from rag.uploads import Uploads, UploadsBusy
from services.api import EmbeddingModel, Parts, create_app
from services.auth import Auth
from services.bundle import load_bundle
from services.caller import CallerHeaders
from services.documents import Desk
from services.lock import Lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.slots import Served
from services.telemetry import Telemetry

BUNDLE = """
name: box
model: {name: tiny, source: "pypi:tiny==1"}
prompts: {docs: {path: docs.yaml}}
policies: {open: {path: open.yaml}}
collections: {papers: {path: papers.jsonl, top_k: 4}}
routes: {ask: {prompt: docs, policy: open, collection: papers}}
"""
TENANTS, ROLES = ("acme", "globex"), ("staff", "hr", "board")
TOPICS = {
    "staff": "The canteen's menu costs {code} francs. 食堂套餐的价格是{code}法郎。",
    "hr": "The salary of the director is {code} francs. 总监的工资是{code}法郎。",
    "board": "The price of the merger is {code} francs. 合并的价格是{code}法郎。",
}
QUESTIONS = [
    "What is the salary of the director?", "总监的工资是多少？", "What is the price of the merger?", "合并的价格是多少？",
    "How much is the canteen's menu?", "francs", "acme salary merger canteen", "globex 工资 合并 食堂",
    "When is the office open?",
]  # fmt: skip


def code(tenant, role):
    return f"{(1 + TENANTS.index(tenant)) * 1000 + ROLES.index(role) * 111}"


SECRETS = {(tenant, role): code(tenant, role) for tenant, role in product(TENANTS, ROLES)}


def allowed(tenant, roles):
    return {SECRETS[tenant, role] for role in roles if (tenant, role) in SECRETS}


class Engine:
    """Keeps what it is shown, and repeats it."""

    def __init__(self):
        self.shown = []

    async def complete(self, path, payload):
        text = json.dumps(payload, ensure_ascii=False)
        self.shown.append(text)
        message = {"role": "assistant", "content": text}
        return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}

    async def stream(self, path, payload):
        text = json.dumps(payload, ensure_ascii=False)
        self.shown.append(text)
        for start in range(0, len(text), 7):
            yield {"choices": [{"index": 0, "finish_reason": None, "delta": {"content": text[start : start + 7]}}]}
        yield {"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]}


class Adapters:
    """None."""

    def choose(self, shares, key):
        return Served("", "", ())

    def describe(self, shares):
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundle and its index."""
    folder = tmp_path_factory.mktemp("assistant")
    rows = [
        {"id": f"{tenant}-{role}", "tenant": tenant, "labels": [role], "text": TOPICS[role].format(code=SECRETS[tenant, role])}
        for tenant, role in SECRETS
    ]
    rows += [
        {"id": f"{tenant}-office", "tenant": tenant, "text": f"The office of {tenant} opens at eight."} for tenant in TENANTS
    ]
    rows.append({"id": "law", "text": "Working time is at most 45 hours a week by law."})
    files = {
        "bundle.yaml": BUNDLE, "open.yaml": "",
        "docs.yaml": "system: Use the passages.\nuser: '{{ passages }} | {{ question }}'\n",
        "papers.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "index").mkdir()
    recipe = Recipe(400, "multilingual-e5-small")
    report = build_index(Place(folder, ("papers.jsonl",)).survey(), folder / "index", recipe, embeddings=MultilingualE5())
    assert report.refused == {}
    return folder


def opened(index):
    return Collection(
        index, embedder="multilingual-e5-small", embeddings=MultilingualE5(), top_k=4, dense_weight=0.6, min_score=0.0,
        max_context_characters=4000,
    )  # fmt: skip


@asynccontextmanager
async def serving(folder, callers, shelf=None, auth=None):
    """A client of the box, and its engine; `shelf` is where documents are handed in."""
    auth = auth or Auth(callers=callers, anonymous=True)
    loaded = load_bundle(folder / "bundle.yaml")
    lock = Lock(name="box", model="tiny:1", indexes={"papers": "box-index-papers:1"})
    papers, desks = opened(folder / "index"), {}
    if shelf:
        uploads = Uploads(shelf, Recipe(400, "multilingual-e5-small"), MultilingualE5(), lambda text: text, 100)
        papers, desks = GrowingCollection(papers, uploads, opened), {"papers": Desk(uploads, frozenset({"hr", "board"}))}
    engine, adapters = Engine(), Adapters()
    routes = Routes(loaded, lock, adapters, Policies(loaded, Detectors()))
    pipeline = Pipeline(routes, engine, Telemetry(CollectorRegistry()), {"papers": papers})

    @asynccontextmanager
    async def compose():
        yield Parts(pipeline, EmbeddingModel("e5", 384, None), 100_000, slots=adapters, auth=auth, desks=desks)

    app = create_app(compose)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://box", timeout=60) as http,
    ):
        yield http, engine


async def everything(http, engine, question, headers):
    """Ask in each of the ways that there are, and return all that came back or reached the engine."""
    engine.shown.clear()
    turns = [{"role": "user", "content": "salary, merger, canteen of acme and globex"}, {"role": "assistant", "content": "?"}]
    asked = {"model": "ask", "messages": [*turns, {"role": "user", "content": question}]}
    answers = [
        await http.post("/v1/rag/search", json={"model": "ask", "query": question, "top_k": 50}, headers=headers),
        await http.post("/v1/vector_stores/ask/search", json={"query": question, "max_num_results": 50}, headers=headers),
        await http.post("/v1/chat/completions", json=asked, headers=headers),
        await http.post("/v1/chat/completions", json={**asked, "stream": True}, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    return "\n".join([*(answer.text for answer in answers), *engine.shown])


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("roles", [(), ("staff",), ("hr",), ("staff", "hr", "board")])
async def test_a_caller_sees_what_his_tenant_and_roles_allow(folder, tenant, roles):
    headers = {"x-tenant": tenant, "x-roles": ", ".join(roles)}
    own = allowed(tenant, roles)
    async with serving(folder, CallerHeaders("x-tenant", "x-roles")) as (http, engine):
        seen = "".join([await everything(http, engine, question, headers) for question in QUESTIONS])

    assert {secret for secret in SECRETS.values() if secret in seen} == own
    assert f"office of {tenant}" in seen
    assert f"office of {TENANTS[1 - TENANTS.index(tenant)]}" not in seen
    assert "45 hours" in seen


@pytest.mark.parametrize("roles", [(), ("staff",), ("hr", "board")])
async def test_a_key_sees_what_its_tenant_and_roles_allow_whatever_the_headers_say(folder, tmp_path, roles):
    async with open_database(f"sqlite:///{tmp_path}/ekiben.db") as engine:
        store = KeyStore(engine)

        async def keys():
            return store

        new = [NewKey(name="app", owner="jane", tenant=tenant, roles=frozenset(roles)) for tenant in TENANTS]
        secrets = [(await store.create(one)).secret for one in new]
        proxy = CallerHeaders("x-tenant", "x-roles")
        async with serving(folder, proxy, auth=Auth(keys, callers=proxy)) as (http, shown):
            for tenant, other, secret in zip(TENANTS, reversed(TENANTS), secrets, strict=True):
                headers = {"authorization": f"Bearer {secret}", "x-tenant": other, "x-roles": ",".join(ROLES)}
                seen = "".join([await everything(http, shown, question, headers) for question in QUESTIONS])

                assert {code for code in SECRETS.values() if code in seen} == allowed(tenant, roles)
                assert f"office of {tenant}" in seen
                assert f"office of {other}" not in seen


@pytest.mark.parametrize(
    "headers",
    [
        {"x-tenant": "acme' OR '1'='1", "x-roles": "hr"},
        {"x-tenant": "globex') --", "x-roles": "board') OR ('1'='1"},
        {"x-tenant": "*", "x-roles": "*"},
        {"x-tenant": "ACME", "x-roles": "HR"},
        {"x-tenant": " ", "x-roles": "hr,board,staff"},
        {"x-roles": "hr"},
        {},
    ],
)
async def test_nobody_reaches_across(folder, headers):
    async with serving(folder, CallerHeaders("x-tenant", "x-roles")) as (http, engine):
        seen = "".join([await everything(http, engine, question, headers) for question in QUESTIONS[:4]])

    assert not {secret for secret in SECRETS.values() if secret in seen}


async def test_without_a_proxy_headers_mean_nothing(folder):
    async with serving(folder, CallerHeaders()) as (http, engine):
        seen = await everything(http, engine, QUESTIONS[0], {"x-tenant": "acme", "x-roles": "hr"})

    assert not {secret for secret in SECRETS.values() if secret in seen}


async def test_callers_at_once_are_not_mixed_up(folder):
    """Requests of all tenants and roles in flight together."""
    order = random.Random(3)
    async with serving(folder, CallerHeaders("x-tenant", "x-roles")) as (http, _engine):

        async def one():
            tenant, roles = order.choice(TENANTS), order.sample(ROLES, order.randrange(4))
            headers = {"x-tenant": tenant, "x-roles": ",".join(roles)}
            body = {"model": "ask", "query": order.choice(QUESTIONS), "top_k": 50}
            answer = await http.post("/v1/rag/search", json=body, headers=headers)
            return {secret for secret in SECRETS.values() if secret in answer.text} - allowed(tenant, roles)

        assert not any(await asyncio.gather(*(one() for _ in range(60))))


HEADERS = CallerHeaders("x-tenant", "x-roles")
HR = {"x-tenant": "acme", "x-roles": "hr,staff"}
STAFF = {"x-tenant": "acme", "x-roles": "staff"}
OTHERS = {"x-tenant": "globex", "x-roles": "hr,staff,board"}


def document(identity, text, **fields):
    return {"model": "ask", "documents": [{"id": identity, "text": text, **fields}]}


async def found(http, query, headers):
    answer = await http.post("/v1/rag/search", json={"model": "ask", "query": query, "top_k": 50}, headers=headers)
    return answer.raise_for_status().text


async def test_a_document_that_is_handed_in_is_found_replaced_and_deleted(folder, tmp_path):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        new = document("parking", "The parking garage of acme costs 7777 francs.", labels=["staff"])
        [became] = (await http.post("/v1/rag/documents", json=new, headers=HR)).raise_for_status().json()["data"]
        assert (became["id"], became["status"]) == ("parking", "added")
        assert "7777" in await found(http, "What does parking cost?", STAFF)
        assert "7777" not in await found(http, "What does parking cost?", OTHERS)
        assert "7777" not in await found(http, "What does parking cost?", {"x-tenant": "acme"})

        newer = document("parking", "The parking garage of acme costs 8888 francs.", labels=["staff"])
        await http.post("/v1/rag/documents", json=newer, headers=HR)
        seen = await found(http, "What does parking cost?", STAFF)
        assert ("8888" in seen, "7777" in seen) == (True, False)

        deleted = await http.delete("/v1/rag/documents/parking?model=ask", headers=HR)
        assert deleted.json() == {"id": "parking", "object": "document.deleted", "deleted": True}
        assert "8888" not in await found(http, "What does parking cost?", STAFF)


async def test_who_may_hand_in_and_delete(folder, tmp_path):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        new = document("secret", "A secret of 7777 francs.", labels=["hr"])
        assert (await http.post("/v1/rag/documents", json=new, headers=STAFF)).status_code == 403
        assert (await http.post("/v1/rag/documents", json=new)).status_code == 403
        board = document("secret", "A secret.", labels=["board"])
        assert (await http.post("/v1/rag/documents", json=board, headers=HR)).status_code == 403
        tenant = document("secret", "A secret.", tenant="globex")
        assert (await http.post("/v1/rag/documents", json=tenant, headers=HR)).status_code == 400
        assert (await http.post("/v1/rag/documents", json=new, headers=HR)).status_code == 200

        for headers in (STAFF, {}):
            assert (await http.delete("/v1/rag/documents/secret?model=ask", headers=headers)).status_code == 403
        for headers in (OTHERS, {"x-tenant": "acme", "x-roles": "board"}):
            assert (await http.delete("/v1/rag/documents/secret?model=ask", headers=headers)).status_code == 404
        assert "7777" in await found(http, "secret", HR)


async def test_documents_are_listed_for_whom_they_are(folder, tmp_path):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        await http.post("/v1/rag/documents", json=document("note", "A note.", title="Note", labels=["hr"]), headers=HR)

        async def listed(headers):
            answer = await http.get("/v1/rag/documents?model=ask", headers=headers)
            return {one["id"]: one["uploaded"] for one in answer.raise_for_status().json()["data"]}

        packed = {"papers.jsonl#acme-staff": False, "papers.jsonl#acme-office": False, "papers.jsonl#law": False}
        assert await listed(STAFF) == packed
        assert await listed(HR) == packed | {"papers.jsonl#acme-hr": False, "note": True}
        assert await listed({}) == {"papers.jsonl#law": False}
        assert (await http.get("/v1/rag/documents", headers=HR)).status_code == 400


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (document("a", "  "), "documents[0].text"),
        (document("../a", "x"), "documents[0].id"),
        ({"model": "ask", "documents": []}, "documents"),
        ({"model": "ask", "documents": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "same id"),
        (document("a", "x", date="yesterday"), "documents[0].date"),
    ],
)
async def test_documents_that_are_none(folder, tmp_path, body, told):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        answer = await http.post("/v1/rag/documents", json=body, headers=HR)

        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]


async def test_without_a_desk_nothing_is_taken(folder):
    async with serving(folder, HEADERS) as (http, _engine):
        answer = await http.post("/v1/rag/documents", json=document("a", "x"), headers=HR)

        assert answer.status_code == 400
        assert "takes no others" in answer.json()["error"]["message"]


async def test_a_route_that_is_not_there(folder, tmp_path):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        answers = [
            await http.post("/v1/rag/documents", json={**document("a", "x"), "model": "nobody"}, headers=HR),
            await http.get("/v1/rag/documents?model=nobody", headers=HR),
            await http.delete("/v1/rag/documents/a?model=nobody", headers=HR),
        ]

        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
            assert "The model 'nobody' does not exist, or has no documents; there is: ask" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failing", "status"), [(UploadsBusy("try again"), 503), (UnusableIndex("none"), 400), (RuntimeError("embedder"), 503)]
)
async def test_a_change_that_fails_is_told(folder, tmp_path, monkeypatch, failing, status):
    async with serving(folder, HEADERS, tmp_path / "shelf") as (http, _engine):
        await http.post("/v1/rag/documents", json=document("note", "A note."), headers=HR)

        def fails(*_):
            raise failing

        monkeypatch.setattr(Uploads, "_rebuild", fails)
        added = await http.post("/v1/rag/documents", json=document("other", "Another note."), headers=HR)
        removed = await http.delete("/v1/rag/documents/note?model=ask", headers=HR)

        assert (added.status_code, removed.status_code) == (status, status)
