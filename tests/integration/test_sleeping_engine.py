"""A gateway whose engine may be at zero: nobody wakes it but callers, and to them it is never dead while it starts."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from adapters.manifest import Manifest, read_manifest, write_manifest
from adapters.registry import RegistryFile
from services.slots import Shelf, Slots
from tests.serving import PACKED, Sleeper, StandIn, engines, events_of, said, serving, until, written

ROUTES = """
tenants: {"*": {limits: {concurrency: 20}}}
queue: {capacity: 2, deadline_seconds: 0.2}
adapters: {travel: {path: travel}}
upstreams: {far: {url: "URL", health: null}}
routes:
  chat: {prompt: plain, policy: open}
  trips: {prompt: plain, policy: open, adapter: travel}
  newer: {prompt: plain, policy: open, adapter: travel@canary}
  alone: {prompt: plain, policy: open, targets: {of: [{}], deadline_seconds: 0.2, retries: 0}}
  either: {prompt: plain, policy: open, targets: {of: [{}, {upstream: far, model: big}], patience_seconds: 0.05, retries: 0}}
"""
OLD, NEW = f"travel@{PACKED}", f"travel@{'2' * 16}"


@pytest.fixture
async def sleeper():
    async with Sleeper(OLD).serving() as engine:
        yield engine


@pytest.fixture
async def far():
    async with engines() as [engine]:
        engine.pieces = ["far"]
        yield engine


@pytest.fixture
def shelf(tmp_path):
    for version in (OLD, NEW):
        (tmp_path / "store" / version).mkdir(parents=True)
        manifest = Manifest(name="travel", base_source="b", dataset="d", system_prompt="s", sha256="0" * 64)
        write_manifest(tmp_path / "store" / version, manifest)
    return Shelf(
        lambda name, version: tmp_path / "store" / f"{name}@{version}", lambda name, version: f"{name}:{version}", read_manifest
    )


@pytest.fixture
def opened(tmp_path, sleeper, far, shelf):
    """Serve a box before the engine that sleeps."""

    @asynccontextmanager
    async def slots(client, settings, telemetry, lock):
        wake = settings.engine_wake_seconds
        made = Slots(RegistryFile(tmp_path / "adapters.json"), client, shelf, telemetry, capacity=4, wake_seconds=wake)
        async with made.running(lock.adapter_versions(), seconds=0.02):
            await until(made.ready)
            yield made

    @asynccontextmanager
    async def served(**settings):
        folder = written(tmp_path / "bundle", ROUTES.replace("URL", far.url))
        told = {"engine_sleeps": True, "engine_wake_seconds": 10, **settings}
        async with serving(folder, sleeper.url, slots=slots, **told) as box:
            yield box

    return served


def content(answer):
    return answer.json()["choices"][0]["message"]["content"]


# Nobody wakes it


async def test_it_is_never_asked_by_itself(opened, sleeper):
    async with opened() as box:
        models = await box.http.get(f"{box.url}/v1/models", headers={"x-tenant": "acme"})
        await asyncio.sleep(0.3)

        [trips] = [card for card in models.json()["data"] if card["id"] == "trips"]
        assert trips["ekiben"]["adapters"][0]["loaded"]
        assert box.parts.slots.ready()
    assert (sleeper.polls, sleeper.asked, sleeper.starts) == ([], [], 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_waits_until_it_is_up_and_is_sent_once(opened, sleeper, stream):
    async with opened() as box:
        answers = await asyncio.gather(*(box.post(stream=stream) for _ in range(2)))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert (sleeper.starts, len(sleeper.asked), sleeper.polls) == (1, 2, [])


async def test_comments_of_what_holds_the_request_are_no_answer(opened, sleeper):
    sleeper.comments = 0.0
    async with opened() as box:
        answer = await box.post(stream=True)

        assert said(events_of(answer.text)) == "tiny"
        assert answer.text.count(": waiting") == 0
        assert box.metric("llm_requests_total", model="chat", status="ok") == 1


async def test_one_that_does_not_come_is_told_in_time_and_holds_nothing(opened, sleeper):
    sleeper.start_seconds = 60
    async with opened(engine_wake_seconds=0.2) as box:
        answer = await box.post()

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "0.2 s" in answer.json()["error"]["message"]
        await until(lambda: box.parts.pipeline.backends.admission.running == 0)


async def test_comments_for_ever_are_no_answer_either(opened, sleeper):
    sleeper.start_seconds, sleeper.comments = 60, 0.0
    async with opened(engine_wake_seconds=0.3) as box:
        answer = await box.post(stream=True)

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        await until(lambda: sleeper.running == 0)


async def test_what_it_says_of_its_return_is_passed_on(opened, sleeper):
    sleeper.awake, sleeper.status, sleeper.headers = True, 503, {"retry-after": "17"}
    async with opened() as box:
        answer = await box.post()

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "17")


async def test_what_stands_before_it_may_be_away_for_a_moment(tmp_path, far):
    gate = StandIn()
    async with gate.serving():
        port = int(gate.url.rpartition(":")[2])
    async with serving(written(tmp_path / "bundle", ROUTES.replace("URL", far.url)), gate.url, engine_sleeps=True) as box:
        asked = asyncio.create_task(box.post())
        await asyncio.sleep(0.7)
        async with gate.serving(port):
            assert (await asked).status_code == 200


async def test_the_key_of_the_engine_is_sent_and_the_callers_is_not(opened, sleeper):
    async with opened(engine_key="a-key-of-the-engine-0123") as box:
        await box.post()

    assert sleeper.auth == ["Bearer a-key-of-the-engine-0123"]


# It is not dead while it starts


async def test_the_queues_deadline_begins_when_it_is_up(opened, sleeper):
    sleeper.start_seconds = 0.6
    async with opened() as box:
        answers = await asyncio.gather(*(box.post(model="chat") for _ in range(6)))

        assert [answer.status_code for answer in answers] == [200] * 6
        assert sleeper.most_running == 2
        sleeper.pace = 0.5  # awake, and slow: what waits too long is shed as ever
        slow = await asyncio.gather(*(box.post(model="chat", stream=True) for _ in range(6)))
        assert sorted({answer.status_code for answer in slow}) == [200, 503]
        assert box.metric("llm_queue_shed_total", reason="deadline") > 0


async def test_where_nothing_else_can_answer_the_routes_deadline_waits_for_it(opened, sleeper):
    sleeper.start_seconds = 0.6
    async with opened() as box:
        assert content(await box.post(model="alone")) == "tiny"
        sleeper.pace = 1.0
        late = await box.post(model="alone")

        assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_another_target_answers_meanwhile_and_its_breaker_stays_closed(opened, sleeper, far):
    sleeper.start_seconds = 0.8
    async with opened() as box:
        answers = await asyncio.gather(*(box.post(model="either", tenant=f"t{number}") for number in range(20)))

        assert {content(answer) for answer in answers} == {"far"}
        assert box.metric("llm_target_attempts_total", target="engine", reason="late") > 0
        assert box.metric("llm_target_circuit_open", target="engine") == 0
        await until(lambda: sleeper.awake)
        assert content(await box.post(model="either")) == "tiny"


# Adapters


async def test_packed_adapters_answer_after_every_start(opened, sleeper):
    async with opened() as box:
        for _ in range(2):
            assert content(await box.post(model="trips")) == OLD
            sleeper.sleep()
    assert (sleeper.loads, sleeper.polls) == ([], [])


@pytest.mark.parametrize(("stream", "comments"), [(False, None), (True, None), (True, 0.0)])
async def test_a_version_of_later_is_brought_after_every_start(opened, sleeper, stream, comments):
    sleeper.comments = comments
    async with opened() as box:
        await box.parts.slots.promote(NEW, "canary")
        for starts in (1, 2, 3):
            answers = await asyncio.gather(*(box.post(model="newer", stream=stream) for _ in range(2)))
            texts = [said(events_of(answer.text)) if stream else content(answer) for answer in answers]

            assert texts == [NEW, NEW]
            assert (sleeper.starts, sleeper.loads) == (starts, [NEW] * starts)
            sleeper.sleep()
    assert all(awake for _, awake in sleeper.polls)
    assert {payload["model"] for payload in sleeper.asked} == {NEW}


async def test_a_version_that_it_does_not_take_is_answered_by_nothing_else(opened, sleeper):
    async with opened() as box:
        await box.parts.slots.promote(NEW, "canary")
        sleeper.sleep()
        sleeper.refused[NEW] = "rank 64 is too much"
        for _ in range(2):
            answer = await box.post(model="newer")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert "rank" not in answer.text
        assert content(await box.post(model="trips")) == OLD
    assert {payload["model"] for payload in sleeper.asked} == {OLD}


async def test_a_version_let_go_while_it_sleeps_wakes_nobody(opened, sleeper):
    async with opened() as box:
        await box.parts.slots.promote(NEW, "canary")
        sleeper.sleep()
        starts = sleeper.starts
        with pytest.raises(Exception, match="canary"):
            await box.parts.slots.unload(NEW)
        await box.parts.slots.promote(OLD, "canary")
        await box.parts.slots.unload(NEW)

        assert sleeper.starts == starts
        assert content(await box.post(model="newer")) == OLD


# Signs of life


async def test_a_stream_that_waits_gets_comments_and_then_its_answer(opened, sleeper):
    async with opened(keepalive_seconds=0.1) as box:
        answer = await box.post(stream=True, headers={"x-tenant": "acme"})

        first = answer.text.index("data: ")
        assert answer.text[:first].count(": waiting\n\n") == len(answer.text[:first]) // len(": waiting\n\n") >= 2
        assert said(events_of(answer.text)) == "tiny"
        assert ": waiting" not in answer.text[first:]
        assert answer.headers["x-ekiben-route"] == "chat"
        assert answer.headers["content-type"].startswith("text/event-stream")
        sleeper.sleep()
        stream = await box.client().chat.completions.create(
            model="chat", stream=True, messages=[{"role": "user", "content": "hi"}]
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "tiny"


async def test_what_begins_in_time_gets_none(opened, sleeper):
    async with opened(keepalive_seconds=5) as box:
        answer = await box.post(stream=True)

    assert answer.text.startswith("data: ")


async def test_an_error_before_the_first_comment_keeps_its_status(opened, sleeper):
    sleeper.start_seconds = 60
    async with opened(engine_wake_seconds=0.2, keepalive_seconds=5) as box:
        assert (await box.post(stream=True)).status_code == 503


async def test_an_error_after_it_is_an_event(opened, sleeper):
    sleeper.start_seconds = 60
    async with opened(engine_wake_seconds=0.4, keepalive_seconds=0.1) as box:
        answer = await box.post(stream=True)

        [event] = events_of(answer.text)
        assert (answer.status_code, event["error"]["code"]) == (200, "engine_unavailable")
        assert answer.text.endswith("data: [DONE]\n\n")
        assert box.metric("llm_requests_total", model="chat", status="error") == 1


async def test_who_leaves_while_it_starts_frees_everything(opened, sleeper):
    sleeper.start_seconds, sleeper.comments = 60, 0.0
    async with opened(keepalive_seconds=0.05) as box:
        async with box.http.stream(
            "POST", f"{box.url}/v1/chat/completions", headers={"x-tenant": "acme"},
            json={"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True},
        ) as answer:  # fmt: skip
            pieces = answer.aiter_text()
            assert [await anext(pieces), await anext(pieces)] == [": waiting\n\n"] * 2
            assert box.parts.pipeline.backends.admission.running == 1
        await until(lambda: sleeper.running == 0)
        await until(lambda: box.parts.pipeline.backends.admission.running == 0)

        await until(lambda: box.metric("llm_requests_total", model="chat", status="cancelled") == 1)
        assert box.metric("llm_active_requests", model="chat") == 0
        assert [task for task in asyncio.all_tasks() if task.get_name() == "keepalive"] == []
