"""Evaluation against a fake engine over HTTP: what is asked, what counts as right, and what comes out."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapters.evaluate import evaluate, few_shot_messages
from adapters.manifest import Manifest
from adapters.rows import Row
from services.engine_client import EngineClient
from services.errors import EngineRefused

ROWS = [Row(f"{label} please {i}", label) for i in range(6) for label in ("fly", "drive", "walk")]
MANIFEST = Manifest(
    name="a", base_source="path:x", dataset="d", system_prompt="Name it.", sha256="0" * 64, labels=["drive", "fly", "walk"]
)


class FakeEngine:
    """The adapter names the first word; the base says `fly` whatever it is asked."""

    def __init__(self):
        self.requests = []

    async def chat(self, request):
        body = await request.json()
        self.requests.append(body)
        if body["model"] == "broken":
            return web.json_response({"error": {"message": "no such model", "type": "NotFoundError"}}, status=404)
        asked = body["messages"][-1]["content"]
        content = asked.split()[0] + "\n" if body["model"] == "adapter" else "fly"
        return web.json_response({"choices": [{"message": {"content": content}}]})

    def of(self, model):
        return [request for request in self.requests if request["model"] == model]


@pytest.fixture
def fake():
    return FakeEngine()


@pytest.fixture
async def measure(fake):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.chat)

    async def run(rows=ROWS, *, model="adapter", shots=4, limit=None, manifest=MANIFEST):
        async with TestServer(app) as server, EngineClient(str(server.make_url("")).rstrip("/")) as engine:
            return await evaluate(
                engine, (model, "base"), manifest=manifest, rows=rows, shots=shots, limit=limit, seed=7, advance=lambda *_: None
            )

    return run


async def test_the_report_has_its_three_figures_and_is_json(measure):
    report = json.loads(json.dumps((await measure()).report()))

    assert (report["n"], report["accuracy"], report["base_accuracy"]) == (18, 1.0, 0.3333)
    assert (report["shots"], report["labels"], report["unknown_labels"]) == (4, 3, {})


async def test_answers_are_greedy_and_nothing_but_labels(measure, fake):
    await measure()

    assert len(fake.requests) == 2 * len(ROWS)
    for request in fake.requests:
        assert request["temperature"] == 0
        assert request["structured_outputs"] == {"choice": ["drive", "fly", "walk"]}


async def test_the_adapter_gets_the_prompt_that_it_was_trained_with(measure, fake):
    await measure()

    assert {r["messages"][0]["content"] for r in fake.of("adapter")} == {"Name it."}
    assert {len(r["messages"]) for r in fake.of("adapter")} == {2}


async def test_the_base_sees_the_labels_and_shots_but_never_the_row_it_is_asked(measure, fake):
    rows = [*ROWS, Row(ROWS[0].text, "walk")]  # the same text twice
    await measure(rows, shots=19)

    for request in fake.of("base"):
        system, *shots, asked = request["messages"]
        assert all(label in system["content"] for label in MANIFEST.labels)
        shown = [message["content"] for message in shots if message["role"] == "user"]
        assert asked["content"] not in shown
        assert len(shown) == (17 if asked["content"] == ROWS[0].text else 18)


def test_shots_are_turns_of_a_conversation():
    messages = few_shot_messages(ROWS, MANIFEST.labels, [1, 5], 5)

    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in messages[1:]] == ["drive please 0", "drive", "walk please 1"]


async def test_a_label_that_the_adapter_does_not_know_is_wrong_and_counted(measure, fake):
    report = (await measure([*ROWS, Row("swim please", "swim")], shots=19)).report()

    assert (report["n"], report["accuracy"]) == (19, 0.9474)
    assert report["unknown_labels"] == {"swim": 1}
    assert not any(m["content"] == "swim" for r in fake.of("base") for m in r["messages"] if m["role"] == "assistant")


async def test_a_limit_draws_rows_by_the_seed(measure, fake):
    first = (await measure(limit=5)).rows

    assert (len(first), len(fake.of("base"))) == (5, 5)
    assert (await measure(limit=5)).rows == first
    assert len((await measure(limit=100)).rows) == len(ROWS)


async def test_an_adapter_without_labels_is_measured_on_the_files_own(measure, fake):
    report = (await measure(shots=0, manifest=MANIFEST.model_copy(update={"labels": []}))).report()

    assert (report["labels"], report["accuracy"], report["shots"]) == (3, 1.0, 0)


async def test_what_the_engine_refuses_is_told(measure):
    with pytest.raises(EngineRefused, match="no such model"):
        await measure(model="broken")
