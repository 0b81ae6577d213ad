"""The life of an upstream: one start for all who wait, no stop while it is needed, and what happens when either fails."""

import asyncio
import math
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from deploy import lifecycle
from deploy.activator_metrics import ActivatorMetrics
from deploy.lifecycle import Lifecycle, Limits, NotAwake, StartFailed, StopFailed


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.001)


class Upstream:
    """Starter and probe of an upstream that is ready when it is told to be."""

    def __init__(self):
        self.starts = self.stops = 0
        self.up = False
        self.becomes_ready = True
        self.adopted = False
        self.failure = self.stop_failure = None
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.died = asyncio.Event()
        self.answers_after_stop = 0
        self.closed = False
        self.leaves_running = False

    async def running(self):
        return self.adopted

    async def start(self):
        self.starts += 1
        self.died.clear()
        if self.failure:
            raise StartFailed(self.failure)
        self.up = self.becomes_ready

    async def stop(self):
        self.stops += 1
        await self.may_stop.wait()
        if self.stop_failure:
            raise StopFailed(self.stop_failure)
        self.up = False

    async def ended(self):
        await self.died.wait()
        return "it exited with 1"

    async def close(self):
        self.closed = True

    async def probe(self):
        if not self.up and self.answers_after_stop:
            self.answers_after_stop -= 1
            return True
        return self.up

    def die(self):
        self.up = False
        self.died.set()


class Life:
    def __init__(self, **limits):
        self.upstream, self.metrics = Upstream(), ActivatorMetrics()
        self.limits = Limits(**{"idle": None, "start": 5, "hold": 5, "stop": 1, "backoff": 0.02, **limits})

    @asynccontextmanager
    async def open(self):
        async with Lifecycle(self.upstream, self.upstream.probe, self.limits, metrics=self.metrics, said=lambda: "503") as life:
            await asyncio.sleep(0)
            yield life

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


async def ask(life, seconds=0.0):
    with life.lease():
        generation = await life.awake()
        await asyncio.sleep(seconds)
    return generation


async def until(true):
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  whatever it is
            await asyncio.sleep(0.001)


async def test_all_who_wait_have_one_start():
    made = Life()
    async with made.open() as life:
        lives = await asyncio.gather(*(ask(life) for _ in range(50)))

    assert (set(lives), made.upstream.starts) == ({1}, 1)
    assert made.sample("activator_starts_total", outcome="ready") == 1
    assert made.sample("activator_held_seconds_count") == 50
    assert made.sample("activator_waiting_requests") == made.sample("activator_in_flight_requests") == 0
    assert made.upstream.closed


async def test_nothing_starts_unasked():
    made = Life(idle=0.001)
    async with made.open() as life:
        await asyncio.sleep(0.02)

        assert (life.state, made.upstream.starts, made.upstream.stops) == ("asleep", 0, 0)


async def test_it_is_stopped_when_nobody_has_needed_it_for_a_while():
    made = Life(idle=0.02)
    async with made.open() as life:
        await ask(life)
        assert life.state == "awake"
        await until(lambda: life.state == "asleep")

    assert made.upstream.stops == 1
    assert made.sample("activator_stops_total", reason="idle") == 1


async def test_a_long_request_keeps_it_awake():
    made = Life(idle=0.01)
    async with made.open() as life:
        await ask(life, seconds=0.1)

        assert (life.state, made.upstream.stops) == ("awake", 0)


async def test_who_comes_while_it_stops_waits_for_the_stop_and_a_start():
    made = Life(idle=0.01)
    async with made.open() as life:
        await ask(life)
        made.upstream.may_stop.clear()
        await until(lambda: life.state == "stopping")
        second = asyncio.create_task(ask(life))
        await asyncio.sleep(0.02)
        assert (made.upstream.starts, second.done()) == (1, False)
        made.upstream.may_stop.set()

        assert await second == 2
        assert made.upstream.starts == 2


async def test_asleep_is_when_it_answers_no_more():
    made = Life(idle=0.01)
    async with made.open() as life:
        await ask(life)
        made.upstream.answers_after_stop = 5
        await until(lambda: life.state == "asleep")

    assert made.upstream.answers_after_stop == 0


async def test_a_start_that_fails_is_told_to_all_and_tried_again_after_a_pause():
    made = Life(backoff=1)
    made.upstream.failure = "no such program"
    async with made.open() as life:
        told = await asyncio.gather(*(ask(life) for _ in range(3)), return_exceptions=True)
        assert [(error.reason, error.retry_after) for error in told] == [("start_failed", 1)] * 3
        with pytest.raises(NotAwake, match="could not be started"):
            await ask(life)
        assert made.upstream.starts == 1, "within the pause nobody starts it"
        made.upstream.failure = None
        life._not_before = 0.0  # the pause is over

        assert await ask(life) == 1
    assert made.sample("activator_starts_total", outcome="failed") == 1


async def test_the_pause_is_twice_as_long_each_time_up_to_a_minute():
    made = Life(backoff=0.5)
    made.upstream.failure = "no"
    now, pauses = 1000.0, []
    async with Lifecycle(made.upstream, made.upstream.probe, made.limits, clock=lambda: now) as life:
        for _ in range(10):
            with pytest.raises(NotAwake) as told:
                await ask(life)
            pauses.append(told.value.retry_after)
            now += told.value.retry_after

    assert pauses == [1, 1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_start_that_takes_too_long_is_ended():
    made = Life(start=0.02)
    made.upstream.becomes_ready = False
    async with made.open() as life:
        with pytest.raises(NotAwake, match="could not be started"):
            await ask(life)

    assert made.upstream.stops == 1
    assert made.sample("activator_starts_total", outcome="late") == 1


async def test_its_life_is_in_the_log():
    with capture_logs() as logs:
        made = Life(idle=0.02)
        async with made.open() as life:
            await ask(life)
            await until(lambda: made.upstream.stops)
            await until(lambda: life.state == "asleep")
        late = Life(start=0.02)
        late.upstream.becomes_ready = False
        async with late.open() as life:
            with pytest.raises(NotAwake):
                await ask(life)

    assert [one["event"] for one in logs] == [
        "upstream starting", "upstream ready", "upstream idle: stopping", "upstream idle: stopped",
        "upstream starting", "upstream not started",
    ]  # fmt: skip
    assert logs[-1]["last_answer"] == "503"


async def test_a_start_that_dies_fails_at_once():
    made = Life(start=5)
    made.upstream.becomes_ready = False
    async with made.open() as life:
        asked = asyncio.create_task(ask(life))
        await until(lambda: made.upstream.starts)
        made.upstream.die()
        with pytest.raises(NotAwake) as told:
            await asked

    assert told.value.reason == "start_failed"


async def test_no_more_wait_than_may():
    made = Life(queue=2)
    made.upstream.becomes_ready = False
    async with made.open() as life:
        waiting = [asyncio.create_task(ask(life)) for _ in range(2)]
        await until(lambda: made.sample("activator_waiting_requests") == 2)
        with pytest.raises(NotAwake) as told:
            await ask(life)
        made.upstream.up = True

        assert await asyncio.gather(*waiting) == [1, 1]
    assert (told.value.reason, 1 <= told.value.retry_after <= 30) == ("queue_full", True)


async def test_nobody_waits_longer_than_may_be_and_the_start_goes_on():
    made = Life(hold=0.02)
    made.upstream.becomes_ready = False
    async with made.open() as life:
        with pytest.raises(NotAwake) as told:
            await ask(life)
        assert life.state == "starting"
        made.upstream.up = True

        assert await ask(life) == 1
    assert (told.value.reason, made.upstream.starts) == ("held_too_long", 1)


async def test_who_leaves_while_he_waits_frees_his_place():
    made = Life(queue=1)
    made.upstream.becomes_ready = False
    async with made.open() as life:
        for _ in range(3):
            asked = asyncio.create_task(ask(life))
            await until(lambda: made.sample("activator_waiting_requests") == 1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

        assert made.sample("activator_waiting_requests") == made.sample("activator_in_flight_requests") == 0


async def test_one_that_ended_by_itself_is_started_for_the_next_request():
    made = Life()
    async with made.open() as life:
        assert await ask(life) == 1
        made.upstream.die()
        await until(lambda: life.state == "asleep")
        assert made.upstream.starts == 1

        assert await ask(life) == 2
    assert made.sample("activator_stops_total", reason="ended") == 1


async def test_one_that_ends_again_and_again_is_left_alone_for_a_while():
    made = Life(backoff=5)
    async with made.open() as life:
        for _ in range(2):
            await ask(life)
            made.upstream.die()
            await until(lambda: life.state == "asleep")
        with pytest.raises(NotAwake) as told:
            await ask(life)

    assert (told.value.reason, told.value.retry_after, made.upstream.starts) == ("start_failed", 5, 2)


async def test_one_that_refuses_connections_is_started_again_once():
    made = Life()
    async with made.open() as life:
        with life.lease():
            first = await life.awake()
            life.lost(first)
            life.lost(first)
            assert life.state == "starting"
            second = await life.awake()
            life.lost(first)

            assert (second, life.state, made.upstream.starts) == (2, "awake", 2)
    assert made.sample("activator_stops_total", reason="lost") == 1


async def test_a_stop_that_fails_leaves_it_awake_and_is_tried_again():
    made = Life(idle=0.02)
    made.upstream.stop_failure = "the API server is away"
    async with made.open() as life:
        await ask(life)
        await until(lambda: made.upstream.stops)
        assert await ask(life) == 1
        made.upstream.stop_failure = None
        await until(lambda: life.state == "asleep")

    assert (made.upstream.starts, made.sample("activator_stops_total", reason="idle")) == (1, 1)


async def test_what_runs_already_is_taken_over_and_stopped_when_idle():
    made = Life(idle=0.02)
    made.upstream.adopted = made.upstream.up = True
    async with made.open() as life:
        await until(lambda: life.state == "awake")
        await until(lambda: life.state == "asleep")

    assert made.upstream.stops == 1


async def test_what_runs_already_may_have_requests_of_another_for_a_while():
    made = Life(idle=0.01, settle=1)
    made.upstream.adopted = made.upstream.up = True
    async with made.open() as life:
        await until(lambda: life.state == "awake")
        await asyncio.sleep(0.05)
        assert made.upstream.stops == 0
        await until(lambda: life.state == "asleep")
        await ask(life)
        await until(lambda: made.upstream.stops == 2)


@pytest.mark.parametrize("up", [True, False])
async def test_where_only_a_probe_can_tell_what_runs_it_does(up):
    made = Life()
    made.upstream.adopted, made.upstream.up = None, up
    async with made.open() as life:
        await asyncio.sleep(0.02)

        assert life.state == ("awake" if up else "asleep")


async def test_a_defect_of_the_driver_is_no_silence():
    made = Life()

    async def broken():
        raise ZeroDivisionError

    made.upstream.start = broken
    async with made.open() as life:
        asked = asyncio.create_task(ask(life))
        with pytest.raises(ZeroDivisionError):
            await life.driven()
        asked.cancel()


async def test_the_state_is_one_of_four():
    made = Life()
    async with made.open() as life:
        await ask(life)

    states = {
        state: made.sample("activator_state", activator_state=state) for state in ("asleep", "starting", "awake", "stopping")
    }
    assert states == {"asleep": 0, "starting": 0, "awake": 1, "stopping": 0}


async def test_how_long_to_wait_is_told_by_the_start_before():
    made = Life(queue=0)
    async with made.open() as life:
        with pytest.raises(NotAwake) as told:
            await ask(life)

    assert (told.value.retry_after, math.inf > told.value.retry_after) == (30, True)


async def test_who_stops_waiting_for_its_driver_does_not_end_it():
    made = Life()
    async with made.open() as life:
        watching = asyncio.create_task(life.driven())
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

        assert await asyncio.wait_for(ask(life), 5) == 1


@pytest.mark.parametrize(
    ("leaves_running", "up", "over"), [(True, False, True), (True, True, False), (False, False, False), (False, True, False)]
)
async def test_one_that_cannot_be_reached_is_lost_if_its_probe_fails_and_a_start_harms_nobody(leaves_running, up, over):
    made = Life()
    async with made.open() as life:
        with life.lease():
            first = await life.awake()
            made.upstream.leaves_running, made.upstream.up = leaves_running, up

            assert await life.doubted(first) is over
            assert (await life.awake(), made.upstream.starts) == ((2, 2) if over else (1, 1))
