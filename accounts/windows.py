"""What was asked in the last minute, exactly: one log of requests and tokens for each subject, and the slots it holds.

The window slides: what was asked at t counts until t + window, and not at that instant itself. A request is let in where
every subject has room for it, and then counts for all of them; where one has none it counts for none. Its tokens are an
estimate at first. `give` corrects it: less is given back from where it was reserved, more counts from when it was known.

`LocalWindows` is for one process; `redis_windows` does the same for many. Times are whole microseconds of any clock.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

MINUTE = 60_000_000
SLOT_WAIT = 1_000_000
"""When a slot is free is not known before it is: come back in a second."""
Resource = Literal["requests", "tokens", "concurrency"]
RESOURCES: tuple[Resource, ...] = ("requests", "tokens", "concurrency")
Clock = Callable[[], int]


@dataclass(frozen=True)
class Limits:
    """What a subject may have; None is as much as it likes. Raises ValueError for what is not positive."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; a limit is 1 or more, or left out")


@dataclass(frozen=True)
class Subject:
    """Someone or something with limits: `kind` is what (key, tenant, route, ...), `name` which."""

    kind: str
    name: str
    limits: Limits

    @property
    def id(self) -> str:
        """Under which it is counted."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Level:
    """How full a subject's window is."""

    requests: int
    tokens: int
    running: int
    requests_reset: int
    """Microseconds until no request counts any more; `tokens_reset` likewise."""
    tokens_reset: int
    waits: tuple[int | None, int | None, int | None] = (0, 0, 0)
    """Microseconds until there is room, in the order of RESOURCES: 0 is now, None is never."""


@dataclass(frozen=True)
class Taken:
    """What became of a request: a level for each subject, after it was taken or as it was refused."""

    at: int
    levels: tuple[Level, ...]

    @property
    def refused(self) -> bool:
        """Whether a subject has no room."""
        return any(wait != 0 for level in self.levels for wait in level.waits)


@dataclass(frozen=True)
class Entry:
    """A line of a subject's log: of `hold`, `age` microseconds old."""

    kind: Literal["request", "tokens", "slot", "lease"]
    """A lease makes a slot last that is there; a slot is made where it is not."""
    hold: str
    age: int
    amount: int = 0


@dataclass
class _Log:
    requests: deque[tuple[int, str]] = field(default_factory=deque)
    tokens: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict)
    """By hold: when, and how many."""
    total: int = 0
    slots: set[str] = field(default_factory=set)

    def forget(self, edge: int) -> None:
        while self.requests and self.requests[0][0] <= edge:
            self.requests.popleft()
        while self.tokens and (first := next(iter(self.tokens.values())))[0] <= edge:
            self.total -= first[1]
            self.tokens.popitem(last=False)

    def put(self, hold: str, now: int, amount: int) -> None:
        at, had = self.tokens.get(hold, (now, 0))
        self.total += amount - had
        if amount:
            self.tokens[hold] = (at, amount)
        else:
            self.tokens.pop(hold, None)

    def room_at(self, tokens: int, limit: int) -> int:
        """When enough of the log is forgotten, as the time of its last entry that has to go."""
        left = self.total
        for at, amount in self.tokens.values():
            left -= amount
            if left + tokens <= limit:
                return at
        return 0

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.slots)


class LocalWindows:
    """Windows of this process. Not for several threads."""

    def __init__(self, window: int = MINUTE, clock: Clock = lambda: time.monotonic_ns() // 1000) -> None:
        self._window = window
        self._clock = clock
        self._logs: dict[str, _Log] = {}
        self._swept = clock()

    def take(self, hold: str, subjects: Sequence[Subject], tokens: int, *, ask: bool = True) -> Taken:
        """Count a request for all subjects, or for none where one has no room; without `ask`, whether there is room or not."""
        now = self._clock()
        self._sweep(now)
        logs = [self._log(subject.id, now) for subject in subjects]
        if ask:
            levels = tuple(self._level(log, now, s.limits, tokens) for log, s in zip(logs, subjects, strict=True))
            if (taken := Taken(now, levels)).refused:
                return taken
        for log, subject in zip(logs, subjects, strict=True):
            limits = subject.limits
            if limits.requests_per_minute is not None:
                log.requests.append((now, hold))
            if limits.tokens_per_minute is not None:
                log.put(hold, now, tokens)
            if limits.concurrency is not None:
                log.slots.add(hold)
        return Taken(now, tuple(self._level(log, now) for log in logs))

    def give(self, hold: str, subjects: Sequence[Subject], reserved: int, used: int) -> int:
        """End a hold: correct its tokens, free its slots. Returns when."""
        now = self._clock()
        for subject in subjects:
            log = self._log(subject.id, now)
            if subject.limits.tokens_per_minute is not None:
                if hold in log.tokens:
                    log.put(hold, now, min(used, reserved))
                if used > reserved:
                    log.put(over(hold), now, used - reserved)
            log.slots.discard(hold)
        return now

    def entries(self) -> Iterable[tuple[str, list[Entry]]]:
        """Yield the log of each subject as it is when it is asked for: it may change between two."""
        for name in list(self._logs):
            now = self._clock()
            log = self._log(name, now)
            requests = [Entry("request", hold, now - at) for at, hold in log.requests]
            tokens = [Entry("tokens", hold, now - at, amount) for hold, (at, amount) in log.tokens.items()]
            yield name, requests + tokens + [Entry("slot", hold, 0) for hold in log.slots]

    def leases(self) -> Iterable[tuple[str, list[Entry]]]:
        """Yield what each subject has under way."""
        for name, log in list(self._logs.items()):
            if log.slots:
                yield name, [Entry("lease", hold, 0) for hold in log.slots]

    def _log(self, name: str, now: int) -> _Log:
        log = self._logs.setdefault(name, _Log())
        log.forget(now - self._window)
        return log

    def _level(self, log: _Log, now: int, limits: Limits | None = None, tokens: int = 0) -> Level:
        newest = next(reversed(log.tokens.values()))[0] if log.tokens else None
        return Level(
            len(log.requests), log.total, len(log.slots),
            log.requests[-1][0] + self._window - now if log.requests else 0,
            newest + self._window - now if newest is not None else 0,
            self._waits(log, now, limits, tokens) if limits else (0, 0, 0),
        )  # fmt: skip

    def _waits(self, log: _Log, now: int, limits: Limits, tokens: int) -> tuple[int | None, int | None, int | None]:
        for_request = for_tokens = for_slot = 0
        most = limits.requests_per_minute
        if most is not None and len(log.requests) >= most:
            for_request = log.requests[len(log.requests) - most][0] + self._window - now
        most = limits.tokens_per_minute
        if most is not None and tokens > most:
            for_tokens = None
        elif most is not None and log.total + tokens > most:
            for_tokens = log.room_at(tokens, most) + self._window - now
        if limits.concurrency is not None and len(log.slots) >= limits.concurrency:
            for_slot = SLOT_WAIT
        return for_request, for_tokens, for_slot

    def _sweep(self, now: int) -> None:
        """Forget subjects that ask no more, once a window."""
        if now - self._swept < self._window:
            return
        self._swept = now
        for name in list(self._logs):
            if not self._log(name, now):
                del self._logs[name]


def over(hold: str) -> str:
    """Return the name of what a hold used beyond its estimate."""
    return f"{hold}+"
