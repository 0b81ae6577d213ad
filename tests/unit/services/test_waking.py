"""An engine that sleeps: when it is taken for awake, and the adapters that it lacks after a start."""

import asyncio
from contextlib import aclosing

import pytest

from services.asking import ask
from services.errors import EngineRefused, EngineUnavailable
from services.waking import IDLE_SECONDS, SleepingEngine

from .conftest import FakeEngine

PATH = "/v1/chat/completions"
MISSING = EngineRefused("The model does not exist.", status=404)


class Scripted(FakeEngine):
    """Raises what it was given, one after the other, before it answers."""

    def __init__(self):
        super().__init__()
        self.errors = []

    async def complete(self, path, payload):
        if self.errors:
            self.asked.append((path, payload))
            raise self.errors.pop(0)
        return await super().complete(path, payload)

    async def stream(self, path, payload):
        if self.errors:
            self.asked.append((path, payload))
            raise self.errors.pop(0)
        async with aclosing(super().stream(path, payload)) as events:
            async for event in events:
                yield event


class Adapters:
    def __init__(self):
        self.known, self.brought = {"a@1"}, []

    async def bring(self, label):
        if label in self.known:
            self.brought.append(label)
        return label in self.known


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fake():
    return Scripted()


@pytest.fixture
def adapters():
    return Adapters()


@pytest.fixture
def engine(fake, adapters, clock):
    return SleepingEngine(fake, adapters, 300, clock=clock)


async def ask_it(engine, stream, model="a@1"):
    if not stream:
        return await engine.complete(PATH, {"model": model})
    return [event async for event in engine.stream(PATH, {"model": model})]


both = pytest.mark.parametrize("stream", [False, True])


async def test_it_is_awake_from_its_first_word_on_and_for_a_moment_after_its_last(engine, clock):
    told = []
    engine.told = told.append
    assert engine.waking_seconds == 300
    async with aclosing(engine.stream(PATH, {})) as events:
        await anext(events)
        assert engine.waking_seconds == 0
        clock.now += 1000
        assert engine.waking_seconds == 0  # it cannot fall asleep in mid-answer
    assert engine.waking_seconds == 0
    clock.now += IDLE_SECONDS * 2
    assert engine.waking_seconds == 300
    await engine.complete(PATH, {})

    assert told == [0, 300, 0]


async def test_load_without_a_pause_is_one_time_awake(engine, clock):
    told = []
    engine.told = told.append
    for _ in range(5):
        await engine.complete(PATH, {})
        clock.now += IDLE_SECONDS / 2

    assert told == [0]


@both
async def test_one_that_is_lost_is_waking_again(engine, fake, stream):
    await engine.complete(PATH, {})
    fake.errors = [EngineUnavailable("lost")]
    with pytest.raises(EngineUnavailable, match="lost"):
        await ask_it(engine, stream)

    assert engine.waking_seconds == 300


@both
async def test_one_that_refuses_is_awake(engine, fake, stream):
    fake.errors = [EngineRefused("top_q is unknown", status=400)]
    with pytest.raises(EngineRefused, match="top_q"):
        await ask_it(engine, stream)

    assert engine.waking_seconds == 0
    assert len(fake.asked) == 1


@both
async def test_an_adapter_that_it_lacks_is_brought_and_asked_for_once_more(engine, fake, adapters, stream):
    fake.errors = [MISSING]
    assert await ask_it(engine, stream)

    assert adapters.brought == ["a@1"]
    assert [payload for _, payload in fake.asked] == [{"model": "a@1"}] * 2


@both
async def test_what_is_none_of_ours_stays_unknown(engine, fake, adapters, stream):
    fake.errors = [MISSING]
    with pytest.raises(EngineRefused) as caught:
        await ask_it(engine, stream, "tiny")

    assert (caught.value.status, len(fake.asked)) == (404, 1)


@both
async def test_one_that_lacks_it_again_is_not_asked_for_ever(engine, fake, stream):
    fake.errors = [MISSING, MISSING]
    with pytest.raises(EngineUnavailable, match="a@1 is being loaded"):
        await ask_it(engine, stream)

    assert len(fake.asked) == 2


async def test_a_stream_that_began_is_not_begun_again(engine, fake):
    fake.error = MISSING
    with pytest.raises(EngineRefused):
        await ask_it(engine, stream=True)

    assert len(fake.asked) == 1


async def test_closing_a_stream_closes_the_engines(engine, fake):
    events = engine.stream(PATH, {})
    await anext(events)
    await events.aclose()

    assert fake.closed == 1


async def test_a_question_on_the_way_waits_for_its_start_and_no_longer_than_that(fake, adapters):
    async def slow(path, payload):
        await asyncio.sleep(0.1)
        return {"choices": [{"message": {"content": "yes"}}]}

    fake.complete = slow
    engine = SleepingEngine(fake, adapters, 5)
    said = [await ask(engine, "tiny", [], max_tokens=1, deadline_ms=10) for _ in range(2)]

    assert said == ["yes", None]  # awake by now
