"""Answers given again, and who waits for whom."""

import asyncio

import pytest

from cache.answers import Answers, cacheable
from cache.calibration import Calibration
from cache.semantic import Matcher
from cache.store import MemoryStore

VECTORS = {
    "How do I pay?": [1.0, 0.0],
    "How can I pay?": [0.99, 0.05],
    "How do I pay in 2 days?": [0.99, 0.06],
    "Who?": [0.0, 1.0],
}


async def _embed(question):
    return VECTORS.get(question)


@pytest.fixture
def answers(facts):
    calibration = Calibration("m", {"cosine": 50.0}, -45.0, {"pairs": {0.01: 0.9}})

    def answers(**settings):
        return Answers(MemoryStore(), Matcher(calibration, facts), _embed, **settings)

    return answers


async def test_an_answer_is_given_again_by_the_same_words_with_its_age(answers, scope, body):
    now = [100.0]
    cache = answers(now=lambda: now[0])
    assert await cache.get(scope(), "How do I pay?") is None
    assert await cache.put(scope(), "How do I pay?", body("By card."))
    now[0] = 130.0

    hit = await cache.get(scope(), "How do I pay?")

    assert (hit.body, hit.kind, hit.age_seconds, hit.likelihood) == (body("By card."), "exact", 30.0, 1.0)


async def test_an_answer_is_given_again_by_the_same_meaning_inside_its_scope(answers, scope, body):
    cache = answers()
    await cache.put(scope(), "How do I pay?", body("By card."))

    hit = await cache.get(scope(), "How can I pay?")

    assert (hit.kind, hit.body) == ("semantic", body("By card."))
    assert 0.9 <= hit.likelihood < 1
    assert await cache.get(scope(), "Who?") is None
    assert await cache.get(scope(), "How do I pay in 2 days?") is None, "another number"
    assert await cache.get(scope(), "not embedded") is None
    for other in (scope(tenant="t2"), scope(labels=[]), scope(documents="8"), scope(context=[])):
        assert await cache.get(other, "How can I pay?") is None
        assert await cache.get(other, "How do I pay?") is None


async def test_without_a_matcher_only_the_same_words_are_found(scope, body):
    async def never(question):
        raise AssertionError(question)

    cache = Answers(MemoryStore(), None, never)
    await cache.put(scope(), "How do I pay?", body())

    assert await cache.get(scope(), "How can I pay?") is None
    assert (await cache.get(scope(), "How do I pay?")).kind == "exact"


async def test_a_question_whose_answer_has_gone_is_forgotten(facts, scope, body):
    class Forgetful(MemoryStore):
        async def get(self, scope, key):
            return None

    calibration = Calibration("m", {"cosine": 50.0}, -45.0, {"pairs": {0.01: 0.9}})
    store = Forgetful()
    cache = Answers(store, Matcher(calibration, facts), _embed)
    await cache.put(scope(), "How do I pay?", body())

    assert await cache.get(scope(), "How can I pay?") is None
    assert len(await store.questions(scope().digest)) == 0


async def test_identical_requests_at_a_time_ask_the_engine_once(answers, scope, body):
    heard = []
    cache = answers(heard=heard.append)
    asked = []

    async def request():
        async with cache.flight(scope(), "How do I pay?") as flight:
            if flight.hit:
                return flight.hit.body
            asked.append(1)
            await asyncio.sleep(0.02)
            await flight.put(body("By card."))
            return body("By card.")

    answered = await asyncio.gather(*(request() for _ in range(20)))

    assert len(asked) == 1
    assert answered == [body("By card.")] * 20
    assert sorted(heard) == ["miss"] + ["shared"] * 19
    assert await request() == body("By card.")
    assert heard[-1] == "exact"
    answered[3]["choices"] = []
    assert answered[4]["choices"]


async def test_identical_requests_at_a_time_share_what_one_finds_by_meaning(facts, scope, body):
    embedded = []

    async def embed(question):
        embedded.append(question)
        await asyncio.sleep(0.01)
        return VECTORS[question]

    calibration = Calibration("m", {"cosine": 50.0}, -45.0, {"pairs": {0.01: 0.9}})
    cache = Answers(MemoryStore(), Matcher(calibration, facts), embed)
    await cache.put(scope(), "How do I pay?", body("By card."))

    async def request():
        async with cache.flight(scope(), "How can I pay?") as flight:
            return flight.hit.kind

    assert await asyncio.gather(*(request() for _ in range(5))) == ["semantic"] * 5
    assert embedded == ["How do I pay?", "How can I pay?"]


@pytest.mark.parametrize("way", ["error", "cancelled", "not kept"])
async def test_who_waits_goes_on_when_the_first_comes_to_nothing(answers, scope, body, way):
    cache = answers()
    first_is_in = asyncio.Event()

    async def first():
        async with cache.flight(scope(), "How do I pay?") as flight:
            assert flight.hit is None
            first_is_in.set()
            await asyncio.sleep(0.02)
            if way == "error":
                raise RuntimeError(way)
            if way == "not kept":
                assert not await flight.put(body("By", reason="length"))
                return
            await asyncio.sleep(60)

    asked = []

    async def other():
        async with cache.flight(scope(), "How do I pay?") as flight:
            if flight.hit is None:
                asked.append(1)
                await asyncio.sleep(0.01)
                await flight.put(body("By card."))
                return body("By card.")
            return flight.hit.body

    leader = asyncio.create_task(first())
    await first_is_in.wait()
    others = [asyncio.create_task(other()) for _ in range(5)]
    await asyncio.sleep(0.03)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)

    assert await asyncio.gather(*others) == [body("By card.")] * 5
    assert len(asked) == 1
    assert not cache._flying


async def test_who_waited_long_enough_goes_alone(answers, scope, body):
    cache = answers(wait=0.02)
    release = asyncio.Event()

    async def slow():
        async with cache.flight(scope(), "How do I pay?") as flight:
            await release.wait()
            await flight.put(body("slow"))

    leader = asyncio.create_task(slow())
    await asyncio.sleep(0)
    async with cache.flight(scope(), "How do I pay?") as flight:
        assert flight.hit is None
        await flight.put(body("alone"))
    release.set()
    await leader

    assert (await cache.get(scope(), "How do I pay?")).body == body("slow")
    assert not cache._flying


async def test_other_scopes_do_not_wait(answers, scope, body):
    cache = answers()
    async with cache.flight(scope(), "How do I pay?") as one, cache.flight(scope(tenant="t2"), "How do I pay?") as other:
        assert one.hit is other.hit is None


async def test_a_hit_by_meaning_needs_no_engine_and_is_not_put_again(answers, scope, body):
    heard = []
    cache = answers(heard=heard.append)
    await cache.put(scope(), "How do I pay?", body("By card."))

    async with cache.flight(scope(), "How can I pay?") as flight:
        assert flight.hit.kind == "semantic"
        assert not await flight.put(body("other"))

    assert (await cache.get(scope(), "How can I pay?")).kind == "semantic"
    assert heard == ["semantic", "semantic"]


def test_what_may_be_given_again(body):
    assert cacheable(body())
    assert cacheable({"choices": [{"text": "x", "finish_reason": "stop"}]})
    assert cacheable(body(choices=2), several=True)
    refused = [
        body(choices=2), body(reason="length"), body(reason="content_filter"), body(reason="tool_calls"), body(reason=None),
        body(text=""), body(text=None), body(tool_calls=[{"id": "1"}]), body(function_call={"name": "f"}), body(refusal="No."),
        {"error": {"message": "x"}}, {"error": {"message": "x"}, **body()}, {"choices": []}, {},
    ]  # fmt: skip
    for one in refused:
        assert not cacheable(one)
        assert not cacheable({**one, "choices": [*one.get("choices", []), {"finish_reason": "length"}]}, several=True)


async def test_what_may_not_be_given_again_is_not_kept(answers, scope, body):
    cache = answers()

    assert not await cache.put(scope(), "How do I pay?", body(reason="length"))
    assert await cache.get(scope(), "How do I pay?") is None


async def test_what_is_too_old_is_a_spare_and_no_hit(answers, scope, body):
    now, heard = [100.0], []
    cache = answers(now=lambda: now[0], good=10, heard=heard.append)
    await cache.put(scope(), "How do I pay?", body("By card."))
    now[0] = 120.0

    assert await cache.get(scope(), "How do I pay?") is None
    async with cache.flight(scope(), "How do I pay?") as flight:
        assert flight.hit is None
        assert flight.spare.body == body("By card.")
        assert await flight.put(body("In cash."))
    assert (await cache.get(scope(), "How do I pay?")).body == body("In cash.")
    assert heard == ["miss", "miss", "exact"]
