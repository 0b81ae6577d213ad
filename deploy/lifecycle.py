"""An upstream that sleeps: started when somebody waits for it, stopped when nobody has needed it for a while.

One task drives it from state to state, so a start and a stop never overlap and however many wait, there is one start:

    asleep ── somebody waits ──► starting ── ready ──► awake ── idle ──► stopping ──► asleep
                                    └─ failed ─► asleep, with a back-off    └─ ended by itself, or refuses ─► asleep, starting

Between the decision to stop and the state `stopping` nothing else runs: a request comes either before, and keeps the upstream
awake, or after, and waits for the stop and the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Protocol, Self

import structlog

from deploy.activator_metrics import ActivatorMetrics, RefusedBecause, StartOutcome, State, StopReason

log = structlog.get_logger("ekiben")
POLL_SECONDS = 0.05
STABLE_SECONDS = 30.0
_LONGEST_BACKOFF = 60.0


class StartFailed(Exception):
    """The upstream cannot be started; the message says why, for the operator."""


class StopFailed(Exception):
    """The upstream cannot be stopped; the message says why, for the operator."""


class NotAwake(Exception):
    """A request cannot have the upstream now; it may be tried again after so many whole seconds."""

    def __init__(self, message: str, reason: RefusedBecause, retry_after: int) -> None:
        super().__init__(message)
        self.message, self.reason, self.retry_after = message, reason, retry_after


class Starter(Protocol):
    """What starts and stops an upstream."""

    @property
    def leaves_running(self) -> bool:
        """Whether `start` leaves as it is what runs already, so that it harms nobody."""
        ...

    async def running(self) -> bool | None:
        """Whether it runs already, ready or not, by another's doing; None where only a probe can tell. Raises StartFailed."""
        ...

    async def start(self) -> None:
        """See to it that it runs, and return without waiting until it is ready; raises StartFailed.

        What runs but refuses connections is started anew where that is in the starter's hands.
        """
        ...

    async def stop(self) -> None:
        """End it, and return once it has ended; raises StopFailed."""
        ...

    async def ended(self) -> str:
        """Return how it ended, once it ends by itself; never, where that cannot be known."""
        ...

    async def close(self) -> None:
        """The activator ends: let go, and end what would be left alone."""
        ...


@dataclass(frozen=True)
class Limits:
    """How long and how many; all times in seconds."""

    idle: float | None = 300.0
    """Stopped after so long without a request; None: never."""
    start: float = 300.0
    """A start that takes longer has failed."""
    hold: float = 300.0
    """A request waits no longer than this."""
    stop: float = 60.0
    """How long a stopped upstream may go on answering before it is taken for asleep anyway."""
    backoff: float = 1.0
    """After the first failed start; twice as long after each further one, up to a minute."""
    queue: int = 256
    """So many requests may wait."""
    settle: float = 0.0
    """What was found running is not stopped before: an activator of before may still have requests there."""


class Lifecycle:
    """Drives one upstream while its context is open.

    `probe` says whether it is ready, `said` what it last answered to that, for the log; `clock` gives seconds.
    """

    def __init__(
        self,
        starter: Starter,
        probe: Callable[[], Awaitable[bool]],
        limits: Limits | None = None,
        *,
        metrics: ActivatorMetrics | None = None,
        said: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._starter, self._probe, self._limits, self._clock = starter, probe, limits or Limits(), clock
        self._metrics, self._said = metrics or ActivatorMetrics(), said
        self._state: State = "asleep"
        self._generation = 0
        self._in_flight = self._waiting = 0
        self._idle_since = clock()
        self._failed_starts = self._failures = 0
        self._not_before = self._settled = -math.inf
        self._lost = False
        self._began = clock()
        self._last_start_seconds: float | None = None
        self._changed = asyncio.Event()
        self._poke = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """What the upstream does now."""
        return self._state

    async def __aenter__(self) -> Self:
        self._driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        await self._starter.close()

    async def driven(self) -> None:
        """Wait for the driver, which ends by a defect alone, and raise that."""
        if self._driver is not None:
            await asyncio.shield(self._driver)

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Hold the upstream: while the block runs it is not stopped for being idle."""
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._idle_since = self._clock()
            if not self._in_flight:
                self._poke.set()

    async def awake(self, deadline: float | None = None) -> int:
        """Wait until the upstream is awake, and return which of its lives this is; only for who holds a lease.

        `deadline` is the time of the clock at which a request has waited long enough. Raises NotAwake.
        """
        if self._state == "awake":
            return self._generation
        began = self._clock()
        deadline = began + self._limits.hold if deadline is None else deadline
        failed = self._failed_starts
        if self._state == "asleep" and began < self._not_before:
            raise self._start_failed()
        if self._waiting >= self._limits.queue:
            raise NotAwake("Too many requests wait for the engine, which is starting.", "queue_full", self._expected())
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        self._poke.set()
        try:
            while self.state != "awake":
                if self._failed_starts != failed:
                    raise self._start_failed()
                left = deadline - self._clock()
                if left <= 0:
                    raise NotAwake("The engine took too long to start.", "held_too_long", self._expected())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)
            self._metrics.held_seconds.observe(self._clock() - began)
        return self._generation

    def lost(self, generation: int) -> None:
        """Somebody found that this life of the upstream refuses connections: it is started again. Later lives are left alone."""
        if self._state == "awake" and generation == self._generation:
            self._lost = True
            self._turn("starting")
            self._poke.set()

    async def doubted(self, generation: int) -> bool:
        """Somebody could not reach this life of the upstream, which did not refuse him; return whether it is over.

        It may only be full, and have others' requests: lost if its probe fails too, where a start leaves what runs.
        """
        if self._starter.leaves_running and not await self._probe():
            self.lost(generation)
        return self._state != "awake" or generation != self._generation

    def deadline(self) -> float:
        """Return the time of the clock until which a request that comes now may wait."""
        return self._clock() + self._limits.hold

    def left(self, deadline: float) -> float:
        """Return the seconds that are left."""
        return deadline - self._clock()

    async def _drive(self) -> None:
        adopt = await self._is_running()
        self._settled = self._clock() + (self._limits.settle if adopt else 0.0)
        while True:
            while not adopt and (not self._waiting or self._clock() < self._not_before):
                await self._poked(self._not_before - self._clock() if self._waiting else None)
            adopt = False
            if await self._start():
                while not await self._live():
                    log.warning("upstream goes on: it could not be stopped")
                    self._turn("awake")
                adopt = self._lost
            self._lost = False

    async def _is_running(self) -> bool:
        """Whether there is something to adopt: it is waited for, and stopped once it is idle."""
        try:
            running = await self._starter.running()
        except StartFailed as error:
            log.warning("upstream not looked for", problem=str(error))
            running = None
        return await self._probe() if running is None else running

    async def _start(self) -> bool:
        self._turn("starting")
        self._began = self._clock()
        log.info("upstream starting", waiting=self._waiting)
        outcome: StartOutcome = "ready"
        why = ""
        try:
            async with asyncio.timeout(self._limits.start):
                await self._starter.start()
                await self._ready()
        except TimeoutError:
            outcome, why = "late", f"it was not ready after {self._limits.start:g} s"
        except StartFailed as error:
            outcome, why = "failed", str(error)
        took = self._clock() - self._began
        self._metrics.starts.labels(outcome).inc()
        if outcome == "ready":
            log.info("upstream ready", seconds=round(took, 3))
            self._metrics.start_seconds.observe(took)
            self._last_start_seconds = took
            self._generation += 1
            self._idle_since = self._clock()
            self._turn("awake")
            return True
        log.error("upstream not started", problem=why, seconds=round(took, 3), last_answer=self._said())
        try:
            await self._starter.stop()
        except StopFailed as error:
            log.warning("upstream not stopped", problem=str(error))
        self._failures += 1
        self._fall(min(self._limits.backoff * 2 ** (self._failures - 1), _LONGEST_BACKOFF))
        return False

    async def _ready(self) -> None:
        """Wait until it is ready; raises StartFailed when it ends before."""
        ended = asyncio.create_task(self._starter.ended())
        try:
            while not await self._probe():
                if ended.done():
                    raise StartFailed(ended.result())
                await asyncio.wait({ended}, timeout=POLL_SECONDS)
        finally:
            ended.cancel()

    async def _live(self) -> bool:
        """Stay awake until it is down, or nobody needs it and it was stopped; False if that failed."""
        since = self._clock()
        ended = asyncio.create_task(self._starter.ended())
        ended.add_done_callback(lambda _: self._poke.set())
        try:
            while not ended.done() and not self._lost:
                left = None
                if self._limits.idle is not None and not self._in_flight:
                    left = max(self._idle_since + self._limits.idle, self._settled) - self._clock()
                    if left <= 0:
                        return await self._stop()
                await self._poked(left)
        finally:
            ended.cancel()
        reason: StopReason = "ended" if ended.done() and not ended.cancelled() else "lost"
        self._metrics.stops.labels(reason).inc()
        if reason == "lost":
            log.warning("upstream refuses connections: started again")
            return True
        self._lost = False
        stable = self._clock() - since >= STABLE_SECONDS
        self._failures = 1 if stable else self._failures + 1
        # Once is chance: who waits is served. A second time at once is a loop.
        delay = 0.0 if self._failures == 1 else min(self._limits.backoff * 2 ** (self._failures - 2), _LONGEST_BACKOFF)
        log.error("upstream ended by itself", problem=ended.result(), again_after_seconds=delay)
        if delay:
            self._fall(delay)
        else:
            self._turn("asleep")
        return True

    async def _stop(self) -> bool:
        self._turn("stopping")
        began = self._clock()
        log.info("upstream idle: stopping", idle_seconds=round(began - self._idle_since, 3))
        try:
            await self._starter.stop()
        except StopFailed as error:
            log.warning("upstream not stopped", problem=str(error))
            self._idle_since = self._clock()
            return False
        # A cluster may send requests to what is ending for a moment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.stop):
                while await self._probe():  # noqa: ASYNC110  the state of another process
                    await asyncio.sleep(POLL_SECONDS)
        log.info("upstream idle: stopped", seconds=round(self._clock() - began, 3))
        self._metrics.stops.labels("idle").inc()
        self._failures = 0
        self._turn("asleep")
        return True

    async def _poked(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poke.wait()
        self._poke.clear()

    def _fall(self, delay: float) -> None:
        """Asleep, and not started again before the delay is over; whoever waits is told so."""
        self._not_before = self._clock() + delay
        self._failed_starts += 1
        self._turn("asleep")

    def _turn(self, state: State) -> None:
        self._state = state
        self._metrics.state.state(state)
        self._changed.set()
        self._changed = asyncio.Event()

    def _start_failed(self) -> NotAwake:
        left = max(1, math.ceil(self._not_before - self._clock()))
        return NotAwake("The engine could not be started.", "start_failed", left)

    def _expected(self) -> int:
        """Return in how many seconds a start should be over, by the one before."""
        usual = self._last_start_seconds or 30.0
        gone = self._clock() - self._began if self._state == "starting" else 0.0
        return max(1, math.ceil(usual - gone))
