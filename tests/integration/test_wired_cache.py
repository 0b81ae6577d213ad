"""Answers given again by the wired gateway: for whom, for what, and what that costs."""

import asyncio
import json
import random
from contextlib import asynccontextmanager

import pytest

from rag.collection import Collection, GrowingCollection
from rag.embedding import MultilingualE5
from rag.index import Recipe, build_index
from rag.survey import Place
from rag.uploads import Uploads
from services.documents import Desk
from tests.serving import ATTACK, engines, events_of, said, serving, until, written

CACHED = """
audit: {enabled: true}
tenants: {acme: {limits: {tokens_per_minute: 100000}}}
upstreams: {far: {url: "URL"}}
routes:
  chat: {prompt: plain, policy: open, price: {prompt: 10}, parameters: {temperature: 0}, cache: {}}
  safe: {prompt: plain, policy: safe, parameters: {temperature: 0}, cache: {}}
  alike: {prompt: plain, policy: open, parameters: {temperature: 0}, cache: {semantic: true, max_wrong: 0.05}}
  stale:
    prompt: plain
    policy: safe
    parameters: {temperature: 0}
    cache: {ttl_seconds: 1, stale_seconds: 60}
    targets: {of: [{upstream: far, model: big}], retries: 0, apology: "Sorry."}
"""
HEADER = "x-ekiben-cache"


@pytest.fixture(params=["memory", "redis"])
def store(request):
    """Settings of where answers are kept."""
    return {"redis_url": request.getfixturevalue("redis").url} if request.param == "redis" else {}


@pytest.fixture
async def engine():
    async with engines() as [engine]:
        yield engine


@pytest.fixture
async def box(tmp_path, engine, store):
    async with serving(written(tmp_path, CACHED.replace("URL", engine.url)), engine.url, **store) as box:
        yield box


async def test_a_hit_is_the_same_answer_and_costs_nothing(box, engine):
    first = await box.post()
    before = box.spent("tenant:acme")
    second = await box.post()

    assert [answer.headers[HEADER] for answer in (first, second)] == ["miss", "exact"]
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["id"] != first.json()["id"]
    assert second.json()["ekiben"]["cache"]["kind"] == "exact"
    assert len(engine.asked) == 1
    assert box.spent("tenant:acme") == before  # no tokens
    assert [(line["micros"], line.get("more", {}).get("cached")) for line in box.lines()] == [(70, None), (0, "exact")]
    assert box.metric("llm_cache_requests_total", model="chat", result="exact") == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_streams_and_whole_answers_are_each_others_hits(box, engine, kept):
    first = await box.post(stream=kept)
    again = [await box.post(stream=True), await box.post(stream=True, stream_options={"include_usage": True}), await box.post()]

    assert len(engine.asked) == 1
    assert [answer.headers[HEADER] for answer in again] == ["exact"] * 3
    assert [said(events_of(answer.text)) for answer in again[:2]] == ["One two three"] * 2
    assert again[2].json()["choices"][0]["message"]["content"] == "One two three"
    assert [any("usage" in event for event in events_of(answer.text)) for answer in again[:2]] == [False, True]
    assert first.headers["x-ekiben-model"] == again[0].headers["x-ekiben-model"]
    finishes = [choice["finish_reason"] for event in events_of(again[0].text) for choice in event["choices"]]
    assert finishes[-1] == "stop"


async def test_a_caller_may_want_a_new_answer(box, engine):
    await box.post()
    engine.pieces = ["New"]
    fresh = [await box.post(headers={"cache-control": "no-cache"}), await box.post(headers={HEADER: "bypass"}, stream=True)]

    assert [answer.headers[HEADER] for answer in fresh] == ["bypass"] * 2
    assert fresh[0].json()["choices"][0]["message"]["content"] == "New"
    assert len(engine.asked) == 3
    assert (await box.post()).json()["choices"][0]["message"]["content"] == "New"  # which is kept


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"n": 2},
        {"temperature": 0.1},
        {"logprobs": True},
    ],
)
async def test_what_is_never_given_again(box, engine, more):
    answers = [await box.post(**more), await box.post(**more)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(engine.asked) == 2
    assert HEADER not in answers[1].headers


async def test_what_guards_found_something_in_is_not_kept(box, engine):
    for _ in range(2):
        assert (await box.post(ATTACK, model="safe")).status_code == 400
        assert (await box.post("my card is 4111 1111 1111 1111", model="safe")).status_code == 200
    assert len(engine.asked) == 2
    engine.pieces = ["Call +41 44 668 18 00", " or write to jane@example.com"]
    answers = [await box.post("who?", model="safe", stream=number == 1) for number in range(3)]
    assert len(engine.asked) == 5
    assert all("jane@" not in answer.text for answer in answers)
    engine.finish, engine.pieces = "length", ["cut"]
    await box.post("long", model="safe")
    await box.post("long", model="safe")
    assert len(engine.asked) == 7  # half an answer is none


async def test_tenants_and_roles_never_share(box, engine):
    """Mixed, all at once, the same words: each answer names whom it was made for."""
    rng = random.Random(4)
    whom = [("acme", ""), ("acme", "hr"), ("acme", "hr,board"), ("globex", ""), ("globex", "hr")]
    made = {}

    original = engine._words

    def words(payload):
        made[len(made)] = True
        return [f"answer {len(made)}"]

    engine._words, engine.delay = words, 0.01

    async def one():
        tenant, roles = rng.choice(whom)
        answer = await box.post(tenant=tenant, roles=roles, stream=rng.random() < 0.5)
        assert answer.status_code == 200
        return (tenant, roles), said(events_of(answer.text)) or answer.json()["choices"][0]["message"]["content"]

    heard = await asyncio.gather(*(one() for _ in range(100)))
    engine._words = original
    by_whom = {}
    for who, text in heard:
        by_whom.setdefault(who, set()).add(text)
    assert len(engine.asked) == len(whom)
    assert all(len(texts) == 1 for texts in by_whom.values())
    assert len(set.union(*by_whom.values())) == len(whom)


async def test_a_box_with_other_targets_does_not_give_the_answers_of_before(tmp_path, engine, redis):
    """The replicas of a new version share the cache of the old one's; a price is no reason to ask anew."""

    async def asked(number, bundle):
        async with serving(written(tmp_path / number, bundle.replace("URL", engine.url)), engine.url, redis_url=redis.url) as box:
            return [(await box.post(text, model=model)).headers[HEADER] for model in ("chat", "stale") for text in ("a", "b")]

    assert await asked("1", CACHED) == ["miss"] * 4
    assert await asked("2", CACHED.replace("price: {prompt: 10}", "price: {prompt: 20}")) == ["exact"] * 4
    assert await asked("3", CACHED.replace("model: big", "model: bigger")) == ["exact"] * 2 + ["miss"] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_identical_requests_at_once_are_one_call(box, engine, stream):
    engine.delay = 0.2
    answers = await asyncio.gather(*(box.post(stream=stream) for _ in range(20)))

    assert len(engine.asked) == 1
    assert sorted(answer.headers[HEADER] for answer in answers) == ["exact"] * 19 + ["miss"]


async def test_who_waits_for_another_goes_on_when_that_one_leaves(box, engine):
    engine.delay = 0.3
    first = asyncio.create_task(box.post())
    await until(lambda: engine.running)
    second = asyncio.create_task(box.post())
    await asyncio.sleep(0.05)
    first.cancel()

    assert (await second).status_code == 200
    assert (len(engine.asked), engine.left) == (2, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_old_answer_is_given_when_nothing_else_answers(box, engine, stream):
    engine.pieces = ["My mail is", " jane at work"]
    fresh = await box.post("where?", model="stale")
    assert fresh.status_code == 200
    await asyncio.sleep(1.2)
    engine.status = 500
    tokens = box.spent("tenant:acme")
    old = await box.post("where?", model="stale", stream=stream)

    assert (old.status_code, old.headers[HEADER]) == (200, "stale")
    text = said(events_of(old.text)) if stream else old.json()["choices"][0]["message"]["content"]
    assert text == "My mail is jane at work"
    assert box.spent("tenant:acme") == tokens
    line = box.lines()[-1]
    assert (line["more"]["target"], line["micros"], line["completion_tokens"]) == ("cache", 0, 0)
    assert said(events_of((await box.post("what?", model="stale", stream=True)).text)) == "Sorry."
    engine.status, engine.pieces = 200, ["New"]
    new = await box.post("where?", model="stale")
    assert (new.headers[HEADER], new.json()["choices"][0]["message"]["content"]) == ("miss", "New")


async def test_old_answers_are_replaced_by_one_call(box, engine):
    await box.post(model="stale")
    await asyncio.sleep(1.2)
    engine.delay = 0.2
    await asyncio.gather(*(box.post(model="stale") for _ in range(10)))

    assert len(engine.asked) == 2


async def test_a_question_of_the_same_meaning(tmp_path, engine, store):
    model = MultilingualE5()

    async def vector(text, kind):
        return (await asyncio.to_thread(model.embed, text, kind)).vector

    folder = written(tmp_path, CACHED.replace("URL", engine.url))
    async with serving(folder, engine.url, vector=vector, **store) as box:
        await box.post("How do I reset my password?", model="alike")
        alike = await box.post("How can I reset my password?", model="alike", stream=True)
        other = await box.post("How do I reset 2 passwords in 30 days?", model="alike")

    assert (alike.headers[HEADER], other.headers[HEADER]) == ("semantic", "miss")
    assert said(events_of(alike.text)) == "One two three"
    assert len(engine.asked) == 2


# Documents

PAPERS = """
collections: {papers: {path: papers.jsonl, top_k: 2, uploads: {writers: [hr]}}}
routes: {ask: {prompt: docs, policy: open, collection: papers, parameters: {temperature: 0}, cache: {}}}
"""


def opened(index):
    return Collection(
        index, embedder="multilingual-e5-small", embeddings=MultilingualE5(), top_k=2, dense_weight=0.6, min_score=0.0,
        max_context_characters=4000,
    )  # fmt: skip


@asynccontextmanager
async def with_papers(tmp_path, engine):
    rows = [{"id": "a", "text": "The canteen opens at eight."}, {"id": "b", "tenant": "acme", "text": "Acme makes anvils."}]
    written(tmp_path, PAPERS, **{"papers.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    (tmp_path / "index").mkdir()
    recipe = Recipe(400, "multilingual-e5-small")
    build_index(Place(tmp_path, ("papers.jsonl",)).survey(), tmp_path / "index", recipe, embeddings=MultilingualE5())
    uploads = Uploads(tmp_path / "shelf", recipe, MultilingualE5(), lambda text: text, 100)
    papers = GrowingCollection(opened(tmp_path / "index"), uploads, opened)
    desks = {"papers": Desk(uploads, frozenset({"hr"}))}
    async with serving(tmp_path, engine.url, collections={"papers": papers}, desks=desks) as box:
        yield box
    papers.close()


async def test_a_document_that_is_added_makes_answers_of_before_miss(tmp_path, engine):
    engine.echo = True
    asked = {"model": "ask", "roles": "hr"}
    async with with_papers(tmp_path, engine) as box:
        first, second = await box.post("When is the canteen open?", **asked), await box.post("When is the canteen open?", **asked)
        assert [answer.headers[HEADER] for answer in (first, second)] == ["miss", "exact"]
        assert second.json()["ekiben"]["sources"] == first.json()["ekiben"]["sources"]
        added = await box.http.post(
            f"{box.url}/v1/rag/documents",
            json={"model": "ask", "documents": [{"id": "n", "text": "The canteen is open from nine now."}]},
            headers={"x-tenant": "acme", "x-roles": "hr"},
        )
        assert added.status_code == 200, added.text
        third = await box.post("When is the canteen open?", **asked)
        assert third.headers[HEADER] == "miss"
        assert "from nine" in third.text
        assert "from nine" not in (await box.post("When is the canteen open?", **asked, tenant="globex")).text


async def test_nothing_found_is_no_engines_answer(tmp_path, engine):
    async with with_papers(tmp_path, engine) as box:
        box.parts.pipeline.collections["papers"].search = nothing
        answers = [await box.post("What is the moon?", model="ask", stream=stream) for stream in (False, True)]

        assert all("do not say anything" in answer.text for answer in answers)
        assert engine.asked == []


async def nothing(*_):
    return []
