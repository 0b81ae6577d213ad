"""Requests and tokens a minute, and requests at once, of several subjects at a time: with Redis over all replicas.

A request is held for as long as it lasts. Its tokens are reserved by an estimate and settled by what was used, however it ends.
While Redis cannot be reached each replica counts for itself, beginning with what it let in before; no request waits for a
time-out then, a task looks after the server. When it is back it is told what was let in meanwhile, and counts for all again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from accounts.redis_windows import LEASE, UNREACHABLE, RedisWindows
from accounts.windows import MINUTE, RESOURCES, Level, Limits, LocalWindows, Resource, Subject, Taken

__all__ = ["Hold", "Limits", "RateExceeded", "Rates", "Subject", "open_rates"]

TIMEOUT_SECONDS = 0.5
PROBE_SECONDS = 1.0
_Result = TypeVar("_Result")


class RateExceeded(Exception):
    """A subject has no room for the request, which was counted nowhere; `limit` says of what."""

    def __init__(self, subject: Subject, limit: Resource, wait: int | None, headers: dict[str, str]) -> None:
        self.limit: Resource = limit
        self.subject_kind = subject.kind
        self.retry_after_seconds = None if wait is None else wait / 1_000_000
        """When there may be room for it; None where the request alone is more than the limit."""
        self._headers = headers
        per = "requests at once" if limit == "concurrency" else f"{limit} a minute"
        most = getattr(subject.limits, "concurrency" if limit == "concurrency" else f"{limit}_per_minute")
        what = "Ask for less: the request alone is over it." if wait is None else f"Try again in {duration(wait)}."
        super().__init__(f"Limit of {per} reached for this {subject.kind}: {most}. {what}")

    def headers(self) -> dict[str, str]:
        """Return OpenAI's x-ratelimit-* headers."""
        return self._headers


class Hold:
    """A request that was let in."""

    def __init__(self, subjects: Sequence[Subject], tokens: int) -> None:
        self.id = uuid.uuid4().hex
        self.subjects = tuple(subjects)
        self.reserved = tokens
        self.used = tokens
        """Until something is settled the estimate stands."""
        self.levels: tuple[Level, ...] = ()
        self.shared = False
        """Whether Redis may know of it."""

    def settle(self, tokens: int) -> None:
        """Say how many tokens were used so far. The last word counts, and is written when the hold ends."""
        self.used = max(0, tokens)

    def headers(self) -> dict[str, str]:
        """Return OpenAI's x-ratelimit-* headers of the subject that has the least left."""
        return _headers(self.subjects, self.levels)


class Rates:
    """Holds requests: on Redis where there is one and it answers, else in this process."""

    def __init__(
        self,
        shared: RedisWindows | None = None,
        local: LocalWindows | None = None,
        *,
        on_change: Callable[[bool], None] = lambda _shared: None,
    ) -> None:
        self._redis = shared
        self._local = local or LocalWindows()
        self._on_change = on_change
        self._away = asyncio.Event()
        self._returning = False
        self._ended: list[Hold] = []
        """Holds whose end Redis was not told, or that a pass of restoring may have brought back."""
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def shared(self) -> bool:
        """Whether limits hold over all replicas now."""
        return self._redis is not None and not self._away.is_set()

    @asynccontextmanager
    async def hold(self, subjects: Sequence[Subject], *, tokens: int) -> AsyncGenerator[Hold]:
        """Hold a request of so many tokens by estimate; raises RateExceeded.

        When the block is left, also by an error or because the caller has gone, its tokens are settled and its slots freed.
        """
        if len({subject.id for subject in subjects}) < len(subjects):
            raise ValueError("a subject is named twice")
        if tokens < 0:
            raise ValueError("tokens is below 0")
        hold = Hold(subjects, tokens)
        taken = await self._take(hold)
        if taken.refused:
            raise _refusal(hold.subjects, taken.levels)
        hold.levels = taken.levels
        try:
            yield hold
        finally:
            await self._give(hold)

    async def keep(self, every_seconds: float, probe_seconds: float) -> None:
        """Renew the leases of slots, and look after a server that is away; never returns."""
        while self._redis is not None:
            if self._away.is_set():
                await asyncio.sleep(probe_seconds)
                with suppress(*UNREACHABLE):
                    await self._return(self._redis)
                continue
            # Not wait_for: on Python 3.11 it loses a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(every_seconds):
                    await self._away.wait()
                continue
            try:
                for name, entries in self._local.leases():
                    await self._redis.restore(name, entries)
            except UNREACHABLE:
                self._lost()

    async def finish(self) -> None:
        """Wait for what is still being written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _take(self, hold: Hold) -> Taken:
        if self._redis is not None and self.shared:
            hold.shared = True
            asking = self._apart(self._redis.take(hold.id, hold.subjects, hold.reserved))
            try:
                taken = await asyncio.shield(asking)
            except UNREACHABLE:
                self._lost()
            except asyncio.CancelledError:
                self._apart(self._undo(asking, hold))
                raise
            else:
                if not taken.refused:
                    self._local.take(hold.id, hold.subjects, hold.reserved, ask=False)
                return taken
        taken = self._local.take(hold.id, hold.subjects, hold.reserved)
        if taken.refused and hold.shared:
            # A server that did not answer may have counted it.
            hold.used = 0
            self._ended.append(hold)
        return taken

    async def _give(self, hold: Hold) -> None:
        self._local.give(hold.id, hold.subjects, hold.reserved, hold.used)
        if self._returning or (hold.shared and not self.shared):
            self._ended.append(hold)
        if self._redis is not None and self.shared:
            # A caller who leaves twice does not stop what is being written.
            await asyncio.shield(self._apart(self._give_shared(self._redis, hold)))

    async def _give_shared(self, redis: RedisWindows, hold: Hold, *, again: bool = False) -> None:
        # What was used beyond the estimate is in the log that was restored, with its time.
        used = min(hold.used, hold.reserved) if again else hold.used
        try:
            await redis.give(hold.id, hold.subjects, hold.reserved, used)
        except UNREACHABLE:
            self._ended.append(hold)
            self._lost()

    async def _undo(self, asking: asyncio.Future[Taken], hold: Hold) -> None:
        """Give back what was taken for a caller who left while it was."""
        with suppress(*UNREACHABLE):
            if not (await asking).refused and self._redis is not None:
                await self._redis.give(hold.id, hold.subjects, hold.reserved, 0)

    def _apart(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _lost(self) -> None:
        if not self._away.is_set():
            self._away.set()
            self._on_change(False)  # noqa: FBT003  a callback has no names

    async def _return(self, redis: RedisWindows) -> None:
        await redis.probe()
        self._returning = True
        try:
            await self._restore(redis)
            self._away.clear()
            self._on_change(True)  # noqa: FBT003
            # What was let in while the first pass was written.
            await self._restore(redis)
        except UNREACHABLE:
            self._lost()
        finally:
            self._returning = False
        ended, self._ended = self._ended, []
        for hold in ended:
            if self.shared:
                await self._give_shared(redis, hold, again=True)
            else:
                self._ended.append(hold)

    async def _restore(self, redis: RedisWindows) -> None:
        for name, entries in self._local.entries():
            await redis.restore(name, entries)


@asynccontextmanager
async def open_rates(
    url: str | None = None,
    *,
    on_change: Callable[[bool], None] = lambda _shared: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    probe_seconds: float = PROBE_SECONDS,
    window: int = MINUTE,
    lease: int = LEASE,
) -> AsyncGenerator[Rates]:
    """Yield rates: of this process without a URL, with one over all who name the same Redis server.

    Args:
        url: redis://, rediss:// or unix://; raises ValueError for another. The server need not be up.
        on_change: called with False when the server is lost and with True when it is back.
        timeout_seconds: of a command, and of a connection.
        probe_seconds: between two looks after a server that is away.
        window: of requests and tokens, in microseconds; a minute but for tests.
        lease: for so many microseconds the slots of a replica that died are held.
    """
    shared = RedisWindows.connect(url, timeout=timeout_seconds, window=window, lease=lease) if url else None
    rates = Rates(shared, LocalWindows(window), on_change=on_change)
    keeper = asyncio.ensure_future(rates.keep(lease / 3_000_000, probe_seconds))
    try:
        yield rates
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        await rates.finish()
        if shared is not None:
            await shared.aclose()


def duration(microseconds: int) -> str:
    """Return a time as OpenAI's headers write it: 120ms, 1.5s, 6m0s; rounded up."""
    milliseconds = -(-microseconds // 1000)
    if milliseconds < 1000:  # noqa: PLR2004
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _refusal(subjects: Sequence[Subject], levels: Sequence[Level]) -> RateExceeded:
    """Name the limit that stands in the way longest: before that, the request cannot be let in."""
    waits: list[tuple[float, int, Subject, Resource, int | None]] = [
        (float("inf") if wait is None else wait, -place, subject, resource, wait)
        for place, (subject, level) in enumerate(zip(subjects, levels, strict=True))
        for resource, wait in zip(RESOURCES, level.waits, strict=True)
    ]
    _, _, subject, resource, wait = max(waits, key=lambda each: each[:2])
    return RateExceeded(subject, resource, wait, _headers(subjects, levels))


def _headers(subjects: Sequence[Subject], levels: Sequence[Level]) -> dict[str, str]:
    headers: dict[str, str] = {}
    pairs = list(zip(subjects, levels, strict=True))
    requests = [(most, level.requests, level.requests_reset) for s, level in pairs if (most := s.limits.requests_per_minute)]
    tokens = [(most, level.tokens, level.tokens_reset) for s, level in pairs if (most := s.limits.tokens_per_minute)]
    for name, found in (("requests", requests), ("tokens", tokens)):
        if found:
            most, spent, reset = min(found, key=lambda each: each[0] - each[1])
            headers[f"x-ratelimit-limit-{name}"] = str(most)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, most - spent))
            headers[f"x-ratelimit-reset-{name}"] = duration(reset)
    return headers
