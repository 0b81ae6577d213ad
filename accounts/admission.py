"""Who may go to the engine now: so many at once, the others in a queue that is fair between tenants and has an end.

Tenants take turns, each tenant's requests in the order they came. A queue that is full sheds the newest request of the
tenant with the longest one, so who asks much cannot keep out who asks little. Counts are of this process and its engine.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

Reason = Literal["full", "deadline"]
_SMOOTHING = 0.1
_LONGEST_RETRY = 60


class Overloaded(Exception):
    """There is no place, or it came too late: the engine has more work than it can do."""

    def __init__(self, reason: Reason, retry_after_seconds: int) -> None:
        self.reason: Reason = reason
        self.retry_after_seconds = retry_after_seconds
        why = "The queue is full" if reason == "full" else "The request waited too long for the engine"
        super().__init__(f"{why}. Try again in {retry_after_seconds} s.")


class Admission:
    """At most `capacity` requests at the engine at once; `queue_length` may wait, each for `deadline_seconds`.

    A tenant of weight n has n turns in a row, and room for n times as many; 1 unless `weights` says otherwise. Raises
    ValueError for what cannot be.
    """

    def __init__(
        self, capacity: int, queue_length: int, deadline_seconds: float, weights: Mapping[str, int] | None = None
    ) -> None:
        if capacity < 1 or queue_length < 0 or deadline_seconds <= 0:
            raise ValueError("capacity is 1 or more, queue_length 0 or more, deadline_seconds above 0")
        if any(weight < 1 for weight in (weights or {}).values()):
            raise ValueError("a weight is 1 or more")
        self.capacity = capacity
        self.queue_length = queue_length
        self.deadline_seconds = deadline_seconds
        self._weights = dict(weights or {})
        # The tenant in front is next, and has so many turns left.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._turns = 0
        self._running = 0
        self._waiting = 0
        self._limits: dict[asyncio.Timeout, tuple[float, float]] = {}  # since when each waits, and how long it may
        self._longer = self._prolonged_at = 0.0
        self._freed_at: float | None = None
        self._between = 1.0

    @property
    def running(self) -> int:
        """Requests at the engine."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    def prolong(self, seconds: float) -> None:
        """Let everybody wait so much longer, while the engine starts; with 0, that time is not counted from now on."""
        now = asyncio.get_running_loop().time()
        if self._longer and not seconds:
            self._limits = {
                limit: (began + now - max(began, self._prolonged_at), patience)
                for limit, (began, patience) in self._limits.items()
            }
        elif not self._longer:
            self._prolonged_at = now
        self._longer = seconds
        for limit, (began, patience) in self._limits.items():
            if not limit.expired():
                limit.reschedule(began + patience + seconds)

    @asynccontextmanager
    async def slot(self, tenant: str, at_most: float | None = None) -> AsyncGenerator[float]:
        """Wait for a place at the engine, at most so many seconds, and hold it; yields the seconds it took. Raises Overloaded."""
        started = asyncio.get_running_loop().time()
        await self._enter(tenant, at_most)
        try:
            yield asyncio.get_running_loop().time() - started
        finally:
            self._leave()

    async def _enter(self, tenant: str, at_most: float | None = None) -> None:
        if self._running < self.capacity:  # then nobody waits
            self._running += 1
            return
        if self._waiting >= self.queue_length:
            self._make_room(tenant)
        turn = asyncio.get_running_loop().create_future()
        if not self._queues:
            self._turns = self._weight(tenant)
        self._queues.setdefault(tenant, deque()).append(turn)
        self._waiting += 1
        patience = self.deadline_seconds if at_most is None else min(at_most, self.deadline_seconds)
        try:
            async with asyncio.timeout(patience + self._longer) as limit:
                self._limits[limit] = asyncio.get_running_loop().time(), patience
                try:
                    await turn
                finally:
                    del self._limits[limit]
        except TimeoutError:
            if turn.cancelled():
                self._drop(tenant, turn)
                raise self._overloaded("deadline") from None
            turn.result()  # its turn came, or it was shed, in the same step
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()
            else:
                self._drop(tenant, turn)
            raise

    def _leave(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._freed_at is not None:
            self._between += _SMOOTHING * (now - self._freed_at - self._between)
        self._running -= 1
        if (turn := self._next()) is not None:
            self._running += 1
            turn.set_result(None)
        self._freed_at = now if self._waiting else None

    def _next(self) -> asyncio.Future[None] | None:
        """Take the next one from the queue; a caller who left may stand there still, until his task has run."""
        while self._queues:
            tenant, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            self._waiting -= 1
            self._turns -= not turn.done()
            if not queue:
                self._remove(tenant)
            elif self._turns <= 0:
                self._queues.move_to_end(tenant)
                self._begin_turns()
            if not turn.done():
                return turn
        return None

    def _drop(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._waiting -= 1
            if not queue:
                self._remove(tenant)

    def _remove(self, tenant: str) -> None:
        first = next(iter(self._queues)) == tenant
        del self._queues[tenant]
        if first:
            self._begin_turns()

    def _begin_turns(self) -> None:
        self._turns = self._weight(next(iter(self._queues), ""))

    def _make_room(self, tenant: str) -> None:
        """Shed the newest request of the tenant with the longest queue, which may be the one that comes; raises Overloaded."""
        longest = max(self._queues, key=lambda name: len(self._queues[name]) / self._weight(name), default=tenant)
        mine = (len(self._queues.get(tenant, ())) + 1) / self._weight(tenant)
        if longest == tenant or len(self._queues[longest]) / self._weight(longest) <= mine:
            raise self._overloaded("full")
        turn = self._queues[longest][-1]
        self._drop(longest, turn)
        if not turn.done():
            turn.set_exception(self._overloaded("full"))

    def _overloaded(self, reason: Reason) -> Overloaded:
        """When the queue of now will be gone, as places were freed lately."""
        seconds = math.ceil(self._between * (self._waiting + 1))
        return Overloaded(reason, max(1, min(_LONGEST_RETRY, seconds)))

    def _weight(self, tenant: str) -> int:
        return self._weights.get(tenant, 1)
