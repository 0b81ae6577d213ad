"""Limits of one process, on virtual time, and against a count made afterwards."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from accounts.rates import Limits, RateExceeded, Rates, Subject, duration
from accounts.windows import LocalWindows
from tests.oracle import Oracle

SECOND = 1_000_000


def rates_of(loop):
    return Rates(local=LocalWindows(clock=loop.microseconds))


def key(**limits):
    return Subject("key", "k1", Limits(**limits))


async def refusal(rates, subjects, tokens=0):
    with pytest.raises(RateExceeded) as refused:
        async with rates.hold(subjects, tokens=tokens):
            pass
    return refused.value


async def ask(rates, subjects, tokens=0, used=None):
    async with rates.hold(subjects, tokens=tokens) as hold:
        if used is not None:
            hold.settle(used)
    return hold


def test_requests_of_the_last_minute_count_and_no_others(virtual):
    async def program(loop):
        rates, subjects = rates_of(loop), [key(requests_per_minute=2)]
        await ask(rates, subjects)
        await asyncio.sleep(10)
        await ask(rates, subjects)
        await asyncio.sleep(20)
        refused = await refusal(rates, subjects)
        await asyncio.sleep(refused.retry_after_seconds - 0.001)
        still = await refusal(rates, subjects)
        await asyncio.sleep(still.retry_after_seconds)
        await ask(rates, subjects)
        return refused, still

    refused, still = virtual(program)

    assert (refused.limit, refused.subject_kind, refused.retry_after_seconds) == ("requests", "key", 30)
    assert still.retry_after_seconds == pytest.approx(0.001)
    assert "2" in str(refused)
    assert "30s" in str(refused)


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_charged(virtual):
    async def program(loop):
        rates, subjects = rates_of(loop), [key(tokens_per_minute=100)]
        await ask(rates, subjects, 90, used=30)
        await asyncio.sleep(10)
        await ask(rates, subjects, 20, used=65)
        refused = await refusal(rates, subjects, 6)
        await ask(rates, subjects, 5)
        return refused

    refused = virtual(program)

    assert (refused.limit, refused.retry_after_seconds) == ("tokens", 50)
    assert refused.headers()["x-ratelimit-remaining-tokens"] == "5"


def test_a_debt_is_waited_for(virtual):
    """A stream may use more than its limit; then nothing passes until enough of it is a minute old."""

    async def program(loop):
        rates, subjects = rates_of(loop), [key(tokens_per_minute=100)]
        async with rates.hold(subjects, tokens=10) as hold:
            await asyncio.sleep(40)
            hold.settle(500)
        return await refusal(rates, subjects, 1), await refusal(rates, subjects, 0)

    for refused in virtual(program):
        assert refused.retry_after_seconds == 60
        assert refused.headers()["x-ratelimit-remaining-tokens"] == "0"


def test_more_than_the_whole_limit_can_never_pass(virtual):
    async def program(loop):
        return await refusal(rates_of(loop), [key(tokens_per_minute=100)], 101)

    refused = virtual(program)

    assert refused.retry_after_seconds is None
    assert "Ask for less" in str(refused)


@pytest.mark.parametrize("end", ["error", "left", "settled"])
def test_however_a_stream_ends_its_slot_is_free_and_its_tokens_are_settled(virtual, end):
    async def program(loop):
        rates, subjects = rates_of(loop), [key(tokens_per_minute=100, concurrency=1)]

        async def stream():
            async with rates.hold(subjects, tokens=100) as hold:
                for used in range(10):
                    hold.settle(used)
                    await asyncio.sleep(1)
                    if end == "error" and used == 4:
                        raise ConnectionError

        task = asyncio.ensure_future(stream())
        await asyncio.sleep(4.5)
        busy = await refusal(rates, subjects, 0)
        if end == "left":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return busy, await ask(rates, subjects, 0)

    busy, hold = virtual(program)

    assert busy.limit == "concurrency"
    assert busy.retry_after_seconds == 1
    assert hold.headers()["x-ratelimit-remaining-tokens"] == {"error": "96", "left": "96", "settled": "91"}[end]


def test_an_estimate_that_nobody_settles_stands(virtual):
    async def program(loop):
        rates, subjects = rates_of(loop), [key(tokens_per_minute=100)]
        await ask(rates, subjects, 70)
        return await refusal(rates, subjects, 31)

    assert virtual(program).limit == "tokens"


def test_who_is_refused_by_one_is_counted_by_none(virtual):
    async def program(loop):
        rates = rates_of(loop)
        wide = Subject("tenant", "t", Limits(requests_per_minute=2, tokens_per_minute=50, concurrency=2))
        narrow = Subject("route", "r", Limits(requests_per_minute=1))
        await ask(rates, [wide, narrow], 10)
        for _ in range(5):
            refused = await refusal(rates, [wide, narrow], 10)
            assert refused.subject_kind == "route"
        return await ask(rates, [wide], 40)

    assert virtual(program).headers()["x-ratelimit-remaining-requests"] == "0"


def test_the_limit_that_lasts_longest_is_named_and_the_least_left_is_told(virtual):
    async def program(loop):
        rates = rates_of(loop)
        tenant = Subject("tenant", "t", Limits(requests_per_minute=1, tokens_per_minute=1000))
        mine = key(requests_per_minute=5, tokens_per_minute=20)
        hold = await ask(rates, [tenant, mine], 15)
        await asyncio.sleep(20)
        return hold.headers(), await refusal(rates, [mine, tenant], 21), await refusal(rates, [mine, tenant], 1)

    headers, never, later = virtual(program)

    assert headers == {
        "x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "20", "x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip
    assert (never.subject_kind, never.limit, never.retry_after_seconds) == ("key", "tokens", None)
    assert (later.subject_kind, later.limit, later.retry_after_seconds) == ("tenant", "requests", 40)


def test_without_limits_nothing_is_counted_or_told(virtual):
    async def program(loop):
        rates = rates_of(loop)
        hold = await ask(rates, [key(), Subject("tenant", "t", Limits())], 10)
        return hold.headers(), list(rates._local.entries())

    headers, entries = virtual(program)

    assert headers == {}
    assert all(not log for _, log in entries)


def test_who_asks_no_more_is_forgotten(virtual):
    async def program(loop):
        local = LocalWindows(clock=loop.microseconds)
        rates = Rates(local=local)
        for number in range(100):
            await ask(rates, [Subject("key", str(number), Limits(requests_per_minute=5, tokens_per_minute=5))], 1)
        await asyncio.sleep(61)
        await ask(rates, [key(requests_per_minute=1)])
        return [name for name, _ in local.entries()]

    assert virtual(program) == ["key:k1"]


async def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="tokens_per_minute is 0"):
        Limits(tokens_per_minute=0)
    for subjects, tokens in (([key(), key()], 0), ([key()], -1)):
        with pytest.raises(ValueError, match=r"twice|below"):
            async with Rates().hold(subjects, tokens=tokens):
                pass


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "0ms"), (1, "1ms"), (120_000, "120ms"), (999_001, "1s"), (1_500_000, "1.5s"), (60 * SECOND, "1m0s"),
        (361_250_000, "6m1.25s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(microseconds, text):
    assert duration(microseconds) == text


@pytest.mark.parametrize("seed", range(3))
def test_200_streams_of_20_tenants_are_counted_as_an_oracle_counts_them(virtual, seed):
    rng = random.Random(seed)
    tenants = [
        Subject("tenant", str(n), Limits(rng.choice([None, 8, 30]), rng.choice([None, 400, 3000]), rng.choice([None, 3, 12])))
        for n in range(20)
    ]
    keys = {tenant.name: [Subject("key", f"{tenant.name}-{n}", Limits(5, 300, 2)) for n in range(4)] for tenant in tenants}
    route = Subject("route", "chat", Limits(400, 30_000, 120))

    async def program(loop):
        rates, oracle = rates_of(loop), Oracle()

        async def stream(number):
            tenant = rng.choice(tenants)
            for turn in range(6):
                await asyncio.sleep(rng.uniform(0, 30))
                subjects = [rng.choice(keys[tenant.name]), tenant, route]
                estimate, used = rng.randint(0, 150), 0
                name = f"{number}.{turn}"
                try:
                    async with AsyncExitStack() as stack:
                        hold = await stack.enter_async_context(rates.hold(subjects, tokens=estimate))
                        oracle.happened.append((loop.microseconds(), "take", name, subjects, estimate, True))
                        try:
                            for _ in range(rng.randint(1, 40)):
                                await asyncio.sleep(rng.uniform(0.01, 2))
                                used += rng.randint(1, 10)
                                hold.settle(used)
                                if rng.random() < 0.02:
                                    raise ConnectionError
                        finally:
                            hold.settle(used)
                            oracle.happened.append((loop.microseconds(), "give", name, subjects, estimate, used))
                except RateExceeded:
                    oracle.happened.append((loop.microseconds(), "take", name, subjects, estimate, False))
                except ConnectionError:
                    pass

        tasks = [asyncio.ensure_future(stream(number)) for number in range(200)]
        await asyncio.sleep(40)
        for task in rng.sample(tasks, 20):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return oracle.judge()

    wrong, let_in, refused = virtual(program)

    assert wrong == []
    assert let_in > 200
    assert refused > 200


def test_requests_are_counted_as_the_library_limits_counts_them(virtual, monkeypatch):
    """Its moving window is exact as well; it knows neither several subjects at once nor a correction."""

    async def program(loop):
        rates, rng = rates_of(loop), random.Random(3)
        monkeypatch.setattr("time.time", lambda: 1_700_000_000 + loop.time())
        theirs = MovingWindowRateLimiter(MemoryStorage())
        answers = []
        for _ in range(2000):
            await asyncio.sleep(rng.uniform(0, 5))
            name = str(rng.randrange(3))
            expected = theirs.hit(RateLimitItemPerMinute(7), name)
            try:
                await ask(rates, [Subject("key", name, Limits(requests_per_minute=7))])
                answers.append((expected, True))
            except RateExceeded:
                answers.append((expected, False))
        return answers

    answers = virtual(program)

    assert {expected for expected, _ in answers} == {True, False}
    assert [expected for expected, _ in answers] == [ours for _, ours in answers]
