"""A circuit breaker for each (target, adapter): who fails too often is left alone for a while, then tried with a few calls.

closed ──failure rate over the window──► open ──time is up──► half open ──every probe succeeds──► closed
                                           ▲                     │
                                           └──── a probe fails ──┘ for longer each time

For one event loop: nothing here awaits, so nothing is locked.
"""

from __future__ import annotations

import functools
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]
Clock = Callable[[], float]
_BUCKETS = 10  # the window moves in tenths


@dataclass(frozen=True)
class BreakerSettings:
    """When a breaker opens, and for how long. Raises ValueError for what cannot be meant."""

    window_seconds: float = 30.0
    minimum_calls: int = 10
    """With fewer calls in the window nothing is concluded."""
    failure_rate: float = 0.5
    """Share of failed calls in the window, over 0 to 1, at which it opens."""
    open_seconds: float = 5.0
    longest_open_seconds: float = 120.0
    backoff: float = 2.0
    """By how much longer it stays open after each probe that failed."""
    jitter: float = 0.2
    """Share of the time by which it is shortened or prolonged at random, so that gateways do not probe in step."""
    probes: int = 2
    """Calls that may be under way while half open, and that must succeed to close it."""

    def __post_init__(self) -> None:
        if not (0 < self.failure_rate <= 1 and 0 <= self.jitter < 1 and self.backoff >= 1):
            raise ValueError("a breaker's failure_rate is over 0 and at most 1, its jitter under 1, its backoff at least 1")
        if not (self.minimum_calls >= 1 and self.probes >= 1):
            raise ValueError("a breaker's minimum_calls and probes are at least 1")
        if not (self.window_seconds > 0 and 0 < self.open_seconds <= self.longest_open_seconds):
            raise ValueError("a breaker's times are more than 0 seconds, and open_seconds at most longest_open_seconds")


class Permit:
    """Leave for one call. Must be settled once the call is over; later settlements change nothing."""

    def __init__(self, settle: Callable[[bool | None], None]) -> None:
        self._settle: Callable[[bool | None], None] | None = settle

    def succeeded(self) -> None:
        """The target answered, or refused a request that was wrong."""
        self._once(failed=False)

    def failed(self) -> None:
        """The target failed: no connection, 5xx, 429, too late, or lost in mid-stream."""
        self._once(failed=True)

    def abandoned(self) -> None:
        """The caller left: nothing is known of the target."""
        self._once(failed=None)

    def _once(self, *, failed: bool | None) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(failed)


class CircuitBreaker:
    """The breaker of one target; `told` hears of each change of state.

    `clock` gives seconds that never go back, `chance` numbers from 0 to 1.
    """

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
        told: Callable[[State], None] | None = None,
    ) -> None:
        self.settings = settings or BreakerSettings()
        self._clock, self._chance, self._told = clock, chance, told
        self._state: State = "closed"
        self._window: deque[list[float]] = deque()  # [start, calls, failures], oldest first
        self._until = 0.0
        self._openings = 0
        self._era = 0  # grows with each change of state: what was begun before says nothing about the time after
        self._probing = self._passed = 0

    @property
    def state(self) -> State:
        """The state now; an open breaker whose time is up is half open."""
        if self._state == "open" and self._clock() >= self._until:
            self._become("half_open")
        return self._state

    @property
    def allows(self) -> bool:
        """Whether a call would be permitted now."""
        state = self.state
        return state == "closed" or (state == "half_open" and self._probing + self._passed < self.settings.probes)

    @property
    def retry_after(self) -> float:
        """Seconds until a call may be permitted; 0 when one may be now."""
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    def permit(self) -> Permit | None:
        """Return leave for one call, None when there is none."""
        if not self.allows:
            return None
        if self._state == "half_open":
            self._probing += 1
        return Permit(functools.partial(self._settle, self._era))

    def _settle(self, era: int, failed: bool | None) -> None:  # noqa: FBT001  told by position
        if era != self._era:
            return
        if self._state == "half_open":
            self._probing -= 1
            if failed:
                self._open()
            elif failed is False:
                self._passed += 1
                if self._passed >= self.settings.probes:
                    self._openings = 0
                    self._become("closed")
        elif failed is not None:
            calls, failures = self._count(failed=failed)
            if calls >= self.settings.minimum_calls and failures / calls >= self.settings.failure_rate:
                self._open()

    def _count(self, *, failed: bool) -> tuple[float, float]:
        now, width = self._clock(), self.settings.window_seconds / _BUCKETS
        start = now // width * width
        if not self._window or self._window[-1][0] < start:
            self._window.append([start, 0, 0])
        self._window[-1][1] += 1
        self._window[-1][2] += failed
        while self._window[0][0] <= now - self.settings.window_seconds:
            self._window.popleft()
        return sum(bucket[1] for bucket in self._window), sum(bucket[2] for bucket in self._window)

    def _open(self) -> None:
        settings = self.settings
        # An exponent of 64 is longer than any limit, and no overflow.
        seconds = min(settings.open_seconds * settings.backoff ** min(self._openings, 64), settings.longest_open_seconds)
        self._openings += 1
        self._until = self._clock() + seconds * (1 + settings.jitter * (2 * self._chance() - 1))
        self._become("open")

    def _become(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._probing = self._passed = 0
        self._window.clear()
        if self._told is not None:
            self._told(state)


class Breakers:
    """The breakers of all targets, made when first asked for; `told` hears (target, adapter, state) of each change."""

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
        told: Callable[[str, str | None, State], None] | None = None,
    ) -> None:
        self._settings = settings or BreakerSettings()
        self._clock, self._chance, self._told = clock, chance, told
        self._breakers: dict[tuple[str, str | None], CircuitBreaker] = {}

    def of(self, target: str, adapter: str | None = None) -> CircuitBreaker:
        """Return the breaker of a target with an adapter: one adapter that fails does not shut the others out."""
        breaker = self._breakers.get((target, adapter))
        if breaker is None:
            told = self._told
            breaker = self._breakers[target, adapter] = CircuitBreaker(
                self._settings,
                clock=self._clock,
                chance=self._chance,
                told=None if told is None else lambda state: told(target, adapter, state),
            )
        return breaker

    def forget(self, target: str, adapter: str | None = None) -> None:
        """Drop the breaker of a target or an adapter that is gone."""
        self._breakers.pop((target, adapter), None)

    def states(self) -> dict[tuple[str, str | None], State]:
        """Return the state of each (target, adapter) that was asked for so far."""
        return {key: breaker.state for key, breaker in self._breakers.items()}
