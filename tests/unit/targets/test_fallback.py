import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from targets.breaker import Breakers, BreakerSettings
from targets.fallback import Attempts, Deadline, DeadlinePassed, NoTargetLeft, Outcome, Passed, Retries, Target, Verdict

BIG, SMALL, SAVED, SORRY = Target("big"), Target("small"), Target("saved", local=True), Target("sorry", local=True)


class Busy(Exception):
    def __init__(self, retry_after: float | None = None) -> None:
        self.retry_after = retry_after


class Wrong(Exception):
    pass


def judge(error: Exception) -> Verdict:
    if isinstance(error, Wrong):
        return Verdict("stop")
    return Verdict("retry", retry_after=error.retry_after if isinstance(error, Busy) else None)


class Scene:
    """Targets that answer as they are told to, and everything that was told of them."""

    def __init__(self, **settings) -> None:
        self.told: list[Outcome] = []
        self.slept: list[float] = []
        self.calls: Counter[str] = Counter()
        self.given: list[float | None] = []
        self.closed: list[str] = []
        self.now = 0.0
        self.script: dict[str, list] = {}
        self.breakers = Breakers(BreakerSettings(minimum_calls=2, jitter=0), clock=lambda: self.now)
        self.attempts = Attempts(
            self.breakers,
            Retries(**settings),
            judge=judge,
            told=self.told.append,
            chance=lambda: 1.0,
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def deadline(self, seconds: float | None = None) -> Deadline:
        return Deadline(seconds, clock=lambda: self.now)

    async def call(self, target: Target, left: float | None) -> str:
        self.calls[target.name] += 1
        self.given.append(left)
        done = self.script[target.name].pop(0)
        if isinstance(done, BaseException):
            raise done
        if done == "hang":
            await asyncio.Event().wait()
        return done

    async def items(self, target: Target, left: float | None):
        self.calls[target.name] += 1
        self.given.append(left)
        try:
            for item in self.script[target.name].pop(0):
                if isinstance(item, BaseException):
                    raise item
                if item == "hang":
                    await asyncio.Event().wait()
                yield item
        finally:
            self.closed.append(target.name)

    @property
    def reasons(self):
        return [(outcome.target.name, outcome.reason, outcome.attempt) for outcome in self.told]


async def all_of(stream) -> list:
    return [item async for item in stream]


async def test_the_first_that_answers_is_the_only_one_asked():
    scene = Scene()
    scene.script = {"big": ["hello"]}

    assert await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline()) == (BIG, "hello")
    assert scene.reasons == [("big", "answered", 1)]


async def test_repeats_then_falls_back():
    scene = Scene(most=1)
    scene.script = {"big": [Busy(), Busy()], "small": ["hello"]}

    assert await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline()) == (SMALL, "hello")
    assert scene.reasons == [("big", "failed", 1), ("big", "failed", 2), ("small", "answered", 1)]
    assert scene.slept == [0.2]


async def test_waits_double_up_to_the_longest():
    scene = Scene(most=4, first_wait=1, longest_wait=3)
    scene.breakers = Breakers(BreakerSettings(minimum_calls=100))
    scene.attempts = Attempts(scene.breakers, scene.attempts.retries, judge, chance=lambda: 1.0, sleep=scene.sleep)
    scene.script = {"big": [Busy(), Busy(), Busy(), Busy(), "hello"]}
    await scene.attempts.answer([BIG], scene.call, scene.deadline())

    assert scene.slept == [1, 2, 3, 3]


async def test_a_wrong_request_stops_at_once_and_speaks_for_the_target():
    scene = Scene()
    scene.script = {"big": [Wrong(), Wrong(), Wrong()]}
    for _ in range(3):
        with pytest.raises(Wrong):
            await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.calls == {"big": 3}
    assert scene.breakers.of("big").state == "closed"
    assert scene.reasons[0] == ("big", "refused", 1)


async def test_a_short_retry_after_is_kept_and_a_long_one_means_the_next():
    scene = Scene(longest_wait=2)
    scene.script = {"big": [Busy(1.5), "hello"]}
    await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.slept == [1.5]
    scene = Scene(longest_wait=2)
    scene.script = {"big": [Busy(30)], "small": ["hello"]}
    assert (await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline()))[0] == SMALL
    assert scene.slept == []


async def test_the_earliest_retry_after_is_told_when_nobody_answers():
    scene = Scene(most=0)
    scene.script = {"big": [Busy(30)], "small": [Busy(9)]}
    with pytest.raises(NoTargetLeft, match="big: failed, small: failed") as caught:
        await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert caught.value.retry_after == 9
    assert not caught.value.late
    assert [outcome.target for outcome in caught.value.outcomes] == [BIG, SMALL]


async def test_an_open_breaker_is_passed_over_without_a_call():
    scene = Scene(most=0)
    scene.script = {"big": [Busy(), Busy()], "small": ["a", "b", "c"]}
    for _ in range(3):
        await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.calls["big"] == 2
    assert scene.reasons[-2:] == [("big", "open", 1), ("small", "answered", 1)]


async def test_a_breaker_that_opens_ends_the_repeats():
    scene = Scene(most=9)
    scene.script = {"big": [Busy()] * 10, "small": ["hello"]}
    await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.calls["big"] == 2


async def test_each_attempt_gets_what_is_left():
    scene = Scene(most=1, first_wait=2, longest_wait=2)
    scene.script = {"big": [Busy(), Busy()], "small": ["hello"]}
    await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline(10))

    assert scene.given == [10, 8, 8]


async def test_a_target_that_is_being_started_is_late_without_blame():
    scene = Scene(most=0, patience=0.01, fair=0.01)
    waking = [True]
    attempts = replace(scene.attempts, waking=lambda target: target is BIG and waking[0])
    scene.script = {"big": ["hang"] * 20, "small": ["yes"] * 20}
    for _ in range(6):
        await attempts.answer([BIG, SMALL], scene.call, scene.deadline())
    assert scene.breakers.of("big").state == "closed"
    waking[0] = False
    for _ in range(6):
        await attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.breakers.of("big").state == "open"


async def test_patience_leaves_something_for_the_others():
    scene = Scene(most=0, patience=0.02)
    scene.script = {"big": ["hang"], "small": ["hello"]}

    assert (await scene.attempts.answer([BIG, SMALL], scene.call, Deadline(60)))[0] == SMALL
    assert scene.reasons == [("big", "late", 1), ("small", "answered", 1)]


async def test_a_wait_longer_than_what_is_left_is_not_begun():
    scene = Scene(most=3, first_wait=2, longest_wait=2)
    scene.script = {"big": [Busy()], "small": ["hello"]}
    await scene.attempts.answer([BIG, SMALL], scene.call, scene.deadline(1.5))

    assert scene.slept == []
    assert scene.calls == {"big": 1, "small": 1}


async def test_when_time_is_up_nobody_is_asked():
    scene = Scene()
    with pytest.raises(NoTargetLeft, match="in time") as caught:
        await scene.attempts.answer([BIG], scene.call, scene.deadline(0))

    assert caught.value.late
    assert scene.calls == {}


async def test_callers_in_a_hurry_do_not_shut_a_target():
    scene = Scene(most=0, fair=5)
    scene.script = {"big": ["hang"] * 4}
    for _ in range(4):
        with pytest.raises(NoTargetLeft):
            await scene.attempts.answer([BIG], scene.call, Deadline(0.01))

    assert scene.breakers.of("big").state == "closed"
    scene = Scene(most=0, fair=0.005)
    scene.script = {"big": ["hang"] * 2}
    for _ in range(2):
        with pytest.raises(NoTargetLeft):
            await scene.attempts.answer([BIG], scene.call, Deadline(0.01))
    assert scene.breakers.of("big").state == "open"


async def test_a_stream_falls_back_until_its_first_item():
    scene = Scene(most=1)
    scene.script = {"big": [[Busy()], []], "small": [["a", "b"]]}
    stream = await scene.attempts.stream([BIG, SMALL], scene.items, scene.deadline())

    assert stream.target == SMALL
    assert await all_of(stream) == ["a", "b"]
    assert scene.reasons == [("big", "failed", 1), ("big", "failed", 2), ("small", "answered", 1)]
    assert scene.closed == ["big", "big", "small"]


async def test_a_stream_that_has_begun_is_never_repeated():
    scene = Scene(most=3)
    scene.script = {"big": [["a", Busy()]]}
    stream = await scene.attempts.stream([BIG, SMALL], scene.items, scene.deadline())

    assert await anext(stream) == "a"
    with pytest.raises(Busy):
        await anext(stream)
    assert scene.calls == {"big": 1}
    assert scene.reasons == [("big", "broken", 1)]


async def test_streams_lost_on_the_way_open_the_breaker():
    scene = Scene()
    scene.script = {"big": [["a", Busy()], ["a", Busy()]]}
    for _ in range(2):
        stream = await scene.attempts.stream([BIG], scene.items, scene.deadline())
        with pytest.raises(Busy):
            await all_of(stream)

    assert not scene.breakers.of("big").allows


async def test_the_deadline_goes_on_after_the_first_item():
    scene = Scene()
    scene.script = {"big": [["a", "hang"]]}
    stream = await scene.attempts.stream([BIG], scene.items, Deadline(0.05))

    assert await anext(stream) == "a"
    with pytest.raises(DeadlinePassed):
        await anext(stream)
    assert scene.closed == ["big"]
    assert scene.reasons == [("big", "late", 1)]


@pytest.mark.parametrize("items", [["hang"], ["a", "hang"]], ids=["before the first item", "in mid-stream"])
async def test_a_caller_who_leaves_closes_the_stream_at_once(items):
    scene = Scene()
    scene.script = {"big": [items]}

    async def request() -> list:
        return await all_of(await scene.attempts.stream([BIG, SMALL], scene.items, scene.deadline()))

    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert scene.closed == ["big"]
    assert scene.reasons == [("big", "left", 1)]


async def test_a_stream_left_unread_is_closed_by_its_context():
    scene = Scene()
    scene.script = {"big": [["a", "b"]]}
    async with await scene.attempts.stream([BIG], scene.items, scene.deadline()):
        assert scene.closed == []

    assert scene.closed == ["big"]
    assert scene.reasons == [("big", "left", 1)]


async def test_a_caller_who_left_frees_the_probe():
    scene = Scene(most=0)
    scene.script = {"big": [Busy(), Busy()]}
    for _ in range(2):
        with pytest.raises(NoTargetLeft):
            await scene.attempts.answer([BIG], scene.call, scene.deadline())
    scene.now = 5
    for _ in range(5):
        scene.script["big"] = ["hang"]
        task = asyncio.create_task(scene.attempts.answer([BIG], scene.call, scene.deadline()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert scene.calls["big"] == 7
    assert scene.breakers.of("big").allows


async def test_a_defect_of_ours_is_passed_on_when_nobody_judges():
    scene = Scene()
    attempts = Attempts(scene.breakers, sleep=scene.sleep)
    scene.script = {"big": [ConnectionError(), KeyError("ours")]}
    with pytest.raises(KeyError):
        await attempts.answer([BIG, SMALL], scene.call, scene.deadline())

    assert scene.calls == {"big": 2}


async def test_the_chain_ends_with_a_saved_answer_or_a_polite_refusal():
    scene = Scene(most=0)
    scene.script = {"big": [Busy()] * 2, "small": [Busy()] * 2, "saved": ["saved", Passed()], "sorry": ["sorry"]}
    chain = [BIG, SMALL, SAVED, SORRY]

    assert await scene.attempts.answer(chain, scene.call, scene.deadline()) == (SAVED, "saved")
    assert await scene.attempts.answer(chain, scene.call, scene.deadline()) == (SORRY, "sorry")
    assert [reason for _, reason, _ in scene.reasons[:3]] == ["failed", "failed", "answered"]
    assert [reason for _, reason, _ in scene.reasons[3:]] == ["failed", "failed", "passed", "answered"]


async def test_what_is_local_answers_even_when_the_time_is_up():
    scene = Scene(most=0)
    scene.script = {"big": [["hang"]], "sorry": [["so", "rry"]]}
    stream = await scene.attempts.stream([BIG, SMALL, SORRY], scene.items, Deadline(0.01))

    assert await all_of(stream) == ["so", "rry"]
    assert scene.calls == {"big": 1, "sorry": 1}


async def test_a_deadline_for_the_first_item_alone_leaves_the_rest_its_time():
    async def slowly(_target, _left):
        for item in ("a", "b", "c"):
            yield item
            await asyncio.sleep(0.03)

    scene = Scene()
    stream = await scene.attempts.stream([BIG], slowly, Deadline(0.05), whole=False)

    assert [item async for item in stream] == ["a", "b", "c"]
