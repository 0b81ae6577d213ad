"""What answers a route, with servers that are doubles: order, places, health, and what a request is charged."""

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from accounts.admission import Admission
from services.asked import Asked
from services.backends import Backends
from services.errors import EngineRefused, EngineUnavailable, Overloaded
from services.protocol import ChatRequest
from services.targeting import Knowledge
from services.telemetry import Record
from services.terms import Price, Target, Targets

from .conftest import FakeEngine

PAYLOAD = {"messages": [{"role": "user", "content": "hi there"}]}
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
PATH = "/v1/chat/completions"


class Far(FakeEngine):
    def __init__(self, *pieces):
        super().__init__()
        self.pieces, self.well = list(pieces), True

    async def healthy(self):
        return self.well


@pytest.fixture
def far():
    return {"a": Far("from a"), "b": Far("from b")}


@pytest.fixture
def route(pipeline):
    return pipeline.route(ChatRequest(model="free", messages=[{"role": "user", "content": "hi"}]))


@pytest.fixture
def both(route):
    of = (Target(upstream="a", model="big", price=Price(prompt=Decimal(9))), Target(upstream="b", model="small"))
    return replace(route, targets=Targets(of=of, retries=0))


@pytest.fixture
def backends(engine, pipeline, far):
    return Backends(engine, pipeline.telemetry, far, Admission(1, 0, 1))


async def said(asked):
    events = [event async for event in asked.stream(PATH, PAYLOAD)]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


async def test_without_targets_the_own_engine_answers(backends, route, engine):
    record = Record("free")
    assert (await Asked(backends, route, record).complete(PATH, PAYLOAD))["choices"]

    assert (record.target, record.prompt_tokens, record.completion_tokens) == (None, 3, 2)
    assert engine.asked[0][1] == PAYLOAD


async def test_the_target_that_answered_is_named_and_its_price_is_charged(backends, both, far):
    far["a"].error = EngineUnavailable("away")
    record = Record("free")
    await Asked(backends, both, record).complete(PATH, PAYLOAD)

    assert record.target == "b/small"
    assert [(call.tokens.prompt, call.price) for call in record.calls] == [(0, Price(prompt=Decimal(9))), (3, None)]
    assert far["b"].asked[0][1]["model"] == "small"


async def test_a_role_alone_is_no_first_token(backends, both, far):
    far["a"].events = [ROLE]
    far["a"].error = EngineUnavailable("lost")

    assert await said(Asked(backends, both, Record("free"))) == "from b"


async def test_what_was_begun_is_not_begun_elsewhere(backends, both, far):
    far["a"].error = EngineUnavailable("lost")
    record = Record("free")
    with pytest.raises(EngineUnavailable, match="lost"):
        await said(Asked(backends, both, record))

    assert far["b"].asked == []
    assert record.target == "a/big"


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_our_standing_there_is_nothing_for_the_caller(backends, both, far, status):
    far["a"].error = far["b"].error = EngineRefused("Incorrect API key sk-1", status=status)
    with pytest.raises(EngineUnavailable) as whole:
        await Asked(backends, both, Record("free")).complete(PATH, PAYLOAD)
    far["a"].pieces = ["x"]
    with pytest.raises(EngineUnavailable) as broken:
        await said(Asked(backends, both, Record("free")))

    assert "sk-1" not in whole.value.message + broken.value.message


async def test_a_wrong_request_is_wrong_everywhere(backends, both, far):
    far["a"].error = EngineRefused("top_q is unknown", status=400)
    with pytest.raises(EngineRefused, match="top_q"):
        await Asked(backends, both, Record("free")).complete(PATH, PAYLOAD)

    assert far["b"].asked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_before_goes_before_an_apology(backends, both, far, stream):
    far["a"].error = far["b"].error = EngineUnavailable("away")
    far["a"].events = far["b"].events = [ROLE]
    both = replace(both, targets=both.targets.model_copy(update={"apology": "Sorry."}))
    before = {"choices": [{"index": 0, "message": {"content": "Before."}, "finish_reason": "stop"}], "object": "chat.completion"}
    for spare, text, target in ((before, "Before.", "cache"), (None, "Sorry.", "apology")):
        record = Record("free")
        asked = Asked(backends, both, record, spare=spare)
        heard = await said(asked) if stream else (await asked.complete(PATH, PAYLOAD))["choices"][0]["message"]["content"]

        assert (heard, record.target) == (text, target)
        assert (record.prompt_tokens, record.completion_tokens) == (0, 0)


async def test_a_place_is_freed_when_the_stream_is_left_and_the_prompt_is_charged(backends, route, engine):
    record = Record("free")
    stream = Asked(backends, route, record).stream(PATH, PAYLOAD)
    await anext(stream)
    assert backends.admission.running == 1
    with pytest.raises(Overloaded):
        await Asked(backends, route, Record("free")).complete(PATH, PAYLOAD)
    await stream.aclose()

    assert (backends.admission.running, engine.closed) == (0, 1)
    assert (record.prompt_tokens, record.completion_tokens) == (3, 1)


async def test_who_leaves_while_the_engine_works_is_charged_the_prompt(backends, route, engine):
    engine.answers = ["slow"]
    record = Record("free")
    task = asyncio.create_task(Asked(backends, route, record).complete(PATH, PAYLOAD))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (record.prompt_tokens, record.completion_tokens) == (3, 0)


async def test_repetition_ends_as_clients_know_it(backends, route, engine, registry):
    engine.answers = [{"choices": [{"index": 0, "message": {"content": "ha"}, "finish_reason": "repetition"}]}]
    body = await Asked(backends, replace(route, stop_on_repetition=True), Record("free")).complete(PATH, PAYLOAD)

    assert body["choices"][0]["finish_reason"] == "length"
    assert "repetition_detection" in engine.asked[0][1]
    assert registry.get_sample_value("llm_stream_early_stops_total", {"reason": "repetition"}) == 1


async def test_health_is_known_before_the_first_request(backends, both, far):
    far["a"].well = False
    async with backends.watched(0.001):
        await asyncio.sleep(0.02)
        assert [name for name, _ in backends.knowledge.order(both, PAYLOAD)] == ["b/small", "a/big"]
        far["a"].well = True
        await asyncio.sleep(0.02)
        assert [name for name, _ in backends.knowledge.order(both, PAYLOAD)] == ["a/big", "b/small"]


def test_a_server_that_was_ill_has_forgotten_its_prefixes(both):
    knowledge = Knowledge()
    both = replace(both, targets=both.targets.model_copy(update={"strategy": "affinity"}))
    long = {"messages": [{"role": "user", "content": "the same words again " * 200}]}
    for name in ("a/big", "b/small"):
        knowledge.load(name)
    knowledge.sent(both, "b/small", long)
    assert knowledge.order(both, long)[0][0] == "b/small"
    knowledge.checked("b", healthy=False)
    knowledge.checked("b", healthy=True)
    knowledge.sent(both, "a/big", long)

    assert knowledge.order(both, long)[0][0] == "a/big"
