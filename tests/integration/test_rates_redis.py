"""Limits on a real Redis: over processes, and while the server is stopped, hangs, or comes back empty."""

import asyncio
import json
import random
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from accounts.rates import Limits, RateExceeded, Subject, open_rates
from accounts.redis_windows import RedisWindows
from accounts.windows import LocalWindows
from tests.oracle import Oracle

ROOT = Path(__file__).resolve().parents[2]
SECOND = 1_000_000


def subjects_of(rng):
    """A key, its tenant, and a route: as random as they are the same in every process."""
    tenant = rng.randrange(4)
    return [
        Subject("key", f"{tenant}-{rng.randrange(3)}", Limits(6, 250, 2)),
        Subject(
            "tenant", str(tenant), [Limits(12, 900, 4), Limits(20, None, None), Limits(None, 500, 5), Limits(9, 700)][tenant]
        ),
        Subject("route", "chat", Limits(40, 2500, 14)),
    ]


@asynccontextmanager
async def windows_on(redis, window=60 * SECOND, lease=30 * SECOND):
    windows = RedisWindows.connect(redis.url, timeout=10, window=window, lease=lease)
    try:
        yield windows
    finally:
        await windows.aclose()


async def test_redis_says_what_one_process_says(redis):
    """The script and Python are the same algorithm: every answer to 3000 random steps, with all its numbers."""
    rng, now = random.Random(1), [1_000_000_000_000_000]
    local = LocalWindows(clock=lambda: now[0])
    refused = 0
    async with windows_on(redis) as connected:
        shared = RedisWindows(connected._client, lease=10**12, clock=lambda: now[0])
        held = []
        for step in range(3000):
            now[0] += rng.choice([0, 1, 700_000, rng.randrange(3 * SECOND)])
            if held and rng.random() < 0.5:
                hold, subjects, estimate = held.pop(rng.randrange(len(held)))
                used = rng.choice([0, estimate // 2, estimate, estimate + 90])
                assert local.give(hold, subjects, estimate, used) == await shared.give(hold, subjects, estimate, used)
                continue
            hold, subjects, estimate = str(step), subjects_of(rng), rng.choice([0, 1, 20, 90, 260])
            expected, told = local.take(hold, subjects, estimate), await shared.take(hold, subjects, estimate)
            assert told == expected
            refused += told.refused
            if not told.refused:
                held.append((hold, subjects, estimate))

    assert 300 < refused < 1400


async def replica(url, seed, seconds):
    """What a process of the next test does: streams, and what came of them with Redis's own times."""
    windows, happened = RedisWindows.connect(url, timeout=10, window=2 * SECOND, lease=60 * SECOND), []
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def stream(number):
        rng, turn = random.Random(seed * 1000 + number), 0
        while loop.time() < end:
            turn += 1
            hold, subjects, estimate = f"{seed}.{number}.{turn}", subjects_of(rng), rng.randrange(120)
            taken = await windows.take(hold, subjects, estimate)
            names = [s.id for s in subjects]
            happened.append((taken.at, "take", hold, names, estimate, not taken.refused))
            await asyncio.sleep(rng.uniform(0, 0.3))
            if not taken.refused:
                used = rng.randrange(180)
                happened.append((await windows.give(hold, subjects, estimate, used), "give", hold, names, estimate, used))

    await asyncio.gather(*(stream(number) for number in range(25)))
    await windows.aclose()
    return happened


def test_two_processes_are_counted_as_an_oracle_counts_them(redis):
    code = (
        "import asyncio, json, sys\n"
        "from tests.integration.test_rates_redis import replica\n"
        "print(json.dumps(asyncio.run(replica(sys.argv[1], int(sys.argv[2]), 6))))"
    )
    commands = [[sys.executable, "-W", "ignore", "-c", code, redis.url, str(seed)] for seed in (1, 2)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)) for command in commands
        ]
        logs = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    rng = random.Random(0)
    known = {s.id: s for _ in range(500) for s in subjects_of(rng)}
    oracle = Oracle(2 * SECOND)
    oracle.happened = sorted(
        (
            (at, what, hold, [known[name] for name in names], estimate, outcome)
            for log in logs
            for at, what, hold, names, estimate, outcome in log
        ),
        key=lambda event: event[0],
    )
    wrong, let_in, refused = oracle.judge()

    assert all(sum(what == "take" for _, what, *_ in log) > 100 for log in logs)
    assert wrong == []
    assert let_in > 50
    assert refused > 50


async def test_the_slots_of_a_process_that_was_killed_are_free_after_their_lease(redis):
    subject = Subject("key", "k", Limits(concurrency=1))
    code = (
        "import asyncio, sys\n"
        "from accounts.rates import *\n"
        "async def main():\n"
        "    async with open_rates(sys.argv[1], lease=3_000_000, timeout_seconds=10) as rates:\n"
        "        async with rates.hold([Subject('key', 'k', Limits(concurrency=1))], tokens=0):\n"
        "            print('held', flush=True)\n"
        "            await asyncio.sleep(100)\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, redis.url]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    async with asyncio.timeout(60), windows_on(redis) as windows:
        assert await process.stdout.readline() == b"held\n"
        # Renewed for as long as the process lives: longer than the lease.
        await asyncio.sleep(4.5)
        assert (await windows.take("other", [subject], 0)).refused
        process.kill()
        await process.wait()
        assert (await windows.take("other", [subject], 0)).refused
        await asyncio.sleep(3.5)
        assert not (await windows.take("other", [subject], 0)).refused


class Load:
    """Streams of one process, and what became of them."""

    def __init__(self, rates, subjects, seed=5):
        self.rates, self.subjects, self.rng = rates, subjects, random.Random(seed)
        self.let_in, self.errors, self.running, self.most = [], [], 0, 0
        self.over = False

    async def stream(self):
        loop = asyncio.get_running_loop()
        while not self.over:
            try:
                before = loop.time()
                async with self.rates.hold(self.subjects, tokens=self.rng.randrange(20)) as hold:
                    self.let_in.append((before, loop.time()))
                    self.running += 1
                    self.most = max(self.most, self.running)
                    try:
                        await asyncio.sleep(self.rng.uniform(0, 0.05))
                        hold.settle(self.rng.randrange(25))
                    finally:
                        self.running -= 1
            except RateExceeded:
                pass
            except Exception as error:  # noqa: BLE001  whatever it is
                self.errors.append(error)
            await asyncio.sleep(self.rng.uniform(0, 0.02))

    def most_in(self, window):
        """The most that were certainly let in within a time, whatever a request waited for its answer."""
        return max(
            sum(before >= start[0] and after < start[0] + window for before, after in self.let_in) for start in self.let_in
        )


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("trouble", ["stopped", "hangs"])
async def test_limits_hold_while_the_server_is_away_and_when_it_is_back(redis, trouble):
    """In mid-load, with one replica: not one request too many, none fails, none asks a server that is known to be away."""
    said, asked = [], []
    subjects = [Subject("key", "k", Limits(60, 10_000, 5)), Subject("tenant", "t", Limits(80, None, 8))]
    options = {"timeout_seconds": 1.0, "probe_seconds": 0.05, "window": 2 * SECOND, "lease": 30 * SECOND}
    async with open_rates(redis.url, on_change=said.append, **options) as rates:
        real = rates._redis.take

        def counted(*arguments):
            asked.append(rates.shared)
            return real(*arguments)

        rates._redis.take = counted
        load = Load(rates, subjects)
        streams = [asyncio.ensure_future(load.stream()) for _ in range(12)]
        await asyncio.sleep(1)
        assert rates.shared
        (redis.stop if trouble == "stopped" else redis.freeze)()
        await until(lambda: said == [False])
        at_loss, before = len(asked), len(load.let_in)
        await asyncio.sleep(2.5)
        during = len(load.let_in) - before
        asked_away = len(asked) - at_loss
        (redis.start if trouble == "stopped" else redis.thaw)()
        await until(lambda: said == [False, True])
        await asyncio.sleep(2.5)
        load.over = True
        await asyncio.gather(*streams)
        # Nothing is left behind: no slot in Redis, nor here.
        await until(lambda: not rates._returning and not rates._ended)
        levels = (await real("last", [Subject("key", "k", Limits())], 0)).levels

    assert not load.errors
    assert during > 10
    assert asked_away == 0
    assert len(asked) > at_loss
    assert load.most <= 5
    assert load.most_in(2) <= 60
    assert levels[0].running == 0
    assert not list(rates._local.leases())


async def test_what_was_let_in_meanwhile_counts_when_the_server_is_back_empty(redis):
    said = []
    subject = Subject("key", "k", Limits(requests_per_minute=4, tokens_per_minute=1000, concurrency=3))

    async with (
        open_rates(redis.url, on_change=said.append, timeout_seconds=10, probe_seconds=0.05) as first,
        open_rates(redis.url, timeout_seconds=10, probe_seconds=0.05) as second,
    ):
        async with first.hold([subject], tokens=100) as kept:
            async with second.hold([subject], tokens=10):
                pass
            redis.stop()
            async with first.hold([subject], tokens=300) as hold:
                hold.settle(7)
            # A replica notices when it asks.
            async with second.hold([Subject("key", "other", Limits(1))], tokens=0):
                pass
            assert not first.shared
            assert not second.shared
            redis.start()
            await until(lambda: first.shared and second.shared)
            await until(lambda: not first._returning and not second._returning)
            async with second.hold([subject], tokens=0) as hold:
                remaining = hold.headers()
                running = hold.levels[0].running
            kept.settle(150)
        with pytest.raises(RateExceeded) as refused:
            async with second.hold([subject], tokens=0):
                pass

    # Three before, one now; 100 reserved and 7 and 10 used, then 50 more.
    assert (remaining["x-ratelimit-remaining-requests"], remaining["x-ratelimit-remaining-tokens"]) == ("0", "883")
    assert running == 2
    assert refused.value.limit == "requests"
    assert refused.value.headers()["x-ratelimit-remaining-tokens"] == "833"
    assert said == [False, True]


async def test_a_server_that_was_never_there_is_as_one_that_is_away(redis):
    redis.stop()
    said = []
    subject = Subject("key", "k", Limits(requests_per_minute=1))
    async with open_rates(redis.url, on_change=said.append) as rates:
        async with rates.hold([subject], tokens=0):
            pass
        with pytest.raises(RateExceeded):
            async with rates.hold([subject], tokens=0):
                pass

    assert said == [False]


async def test_a_caller_who_leaves_while_redis_is_asked_holds_nothing(redis):
    subject = Subject("key", "k", Limits(tokens_per_minute=100, concurrency=1))
    async with open_rates(redis.url, timeout_seconds=10) as rates:
        async with rates.hold([subject], tokens=1):
            pass
        redis.freeze()
        task = asyncio.ensure_future(_hold(rates, subject))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.wait({task})
        redis.thaw()
        await rates.finish()
        async with rates.hold([subject], tokens=1) as hold:
            headers = hold.headers()

    assert task.cancelled()
    assert headers["x-ratelimit-remaining-tokens"] == "98"


async def _hold(rates, subject):
    async with rates.hold([subject], tokens=30):
        await asyncio.sleep(10)


async def test_every_key_in_redis_ends_by_itself(redis):
    subject = Subject("key", "k", Limits(5, 50, 5))
    async with open_rates(redis.url, timeout_seconds=10) as rates, rates.hold([subject], tokens=10):
        client = rates._redis._client
        names = [name async for name in client.scan_iter()]
        lives = [await client.pttl(name) for name in names]

    assert len(names) == 4
    assert all(0 < life <= 62_000 for life in lives)


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="redis://"):
        RedisWindows.connect("http://localhost", timeout=1)
