"""What a gateway knows of a target's load: requests in flight, and moving averages of its times."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class MovingAverage:
    """An exponential moving average by age: a value weighs half after `half_life` seconds; `stale` seconds forget it all.

    Forgetting lets a target that was slow once be tried again.
    """

    def __init__(self, half_life: float = 30.0, stale: float = 120.0, clock: Clock = time.monotonic) -> None:
        if not 0 < half_life <= stale:
            raise ValueError("a moving average's half_life is more than 0 seconds and at most its stale")
        self._half_life, self._stale, self._clock = half_life, stale, clock
        self._sum = self._weight = 0.0
        self._at = clock()

    def add(self, value: float) -> None:
        """Take in a value as of now."""
        now = self._clock()
        kept = 0.0 if now - self._at > self._stale else 0.5 ** ((now - self._at) / self._half_life)
        self._sum, self._weight, self._at = self._sum * kept + value, self._weight * kept + 1, now

    @property
    def value(self) -> float | None:
        """The average, None when there is no value of late."""
        if not self._weight or self._clock() - self._at > self._stale:
            return None
        return self._sum / self._weight


class Load:
    """The load of one target. `begin` each request, and end what it returns, whatever became of it."""

    def __init__(self, half_life: float = 30.0, stale: float = 120.0, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.in_flight = 0
        self._ttft, self._latency = (MovingAverage(half_life, stale, clock) for _ in range(2))

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, of late."""
        return self._ttft.value

    @property
    def latency(self) -> float | None:
        """Seconds to the last token, of late."""
        return self._latency.value

    def begin(self, *, measured: bool = True) -> Flight:
        """Count a request as under way; the times of one that is not `measured` say nothing, as of one that waits for a start."""
        self.in_flight += 1
        return Flight(self._clock, self._ttft if measured else None, self._over if measured else lambda _: self._over(None))

    def _over(self, seconds: float | None) -> None:
        self.in_flight -= 1
        if seconds is not None:
            self._latency.add(seconds)


class Flight:
    """One request under way."""

    def __init__(self, clock: Clock, ttft: MovingAverage | None, over: Callable[[float | None], None]) -> None:
        self._clock, self._begun = clock, clock()
        self._ttft = ttft
        self._over: Callable[[float | None], None] | None = over

    def first_token(self) -> None:
        """Take the time to the first token; later calls change nothing."""
        ttft, self._ttft = self._ttft, None
        if ttft is not None:
            ttft.add(self._clock() - self._begun)

    def end(self, *, whole: bool = True) -> None:
        """Count the request as over; its time counts when it was answered as a `whole`. Later calls change nothing."""
        over, self._over = self._over, None
        if over is not None:
            over(self._clock() - self._begun if whole else None)
