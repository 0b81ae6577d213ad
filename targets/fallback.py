"""Targets asked in turn until one answers, within one budget of time.

An attempt is repeated, or the next target asked, only as long as nothing of an answer has come: a stream is decided by its first
item, and what fails later is passed on. What an error means is the caller's to say (`Judge`); HTTP is not known here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

from targets.breaker import Breakers, Permit

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Clock = Callable[[], float]
Reason = Literal["answered", "failed", "late", "open", "passed", "refused", "left", "broken"]
"""What became of an attempt: answered; failed before an answer; not in time; not tried, its breaker being open; it had nothing to
say; the request was refused as wrong; the caller left; lost after its first item."""


@dataclass(frozen=True)
class Target:
    """What is asked; `adapter` tells apart the breakers of one target."""

    name: str
    adapter: str | None = None
    local: bool = False
    """Answers from this process, at once: a saved answer, a polite refusal. Asked even when the time is up; has no breaker."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt; for metrics, so both fields that may be labels come from bounded sets."""

    target: Target
    reason: Reason
    attempt: int
    """1 for the first attempt on this target."""
    seconds: float
    error: Exception | None = None


@dataclass(frozen=True)
class Verdict:
    """What an error means: `retry` this target, ask the `next`, or `stop`, since the request itself is wrong."""

    then: Literal["retry", "next", "stop"]
    counts: bool = True
    """Whether it speaks against the target; never for `stop`."""
    retry_after: float | None = None
    """Seconds the target asked to be left alone."""


Judge = Callable[[Exception], Verdict]


def judge_plainly(error: Exception) -> Verdict:
    """Repeat what could not connect or was late; anything else is a defect, or for a judge who knows the error."""
    return Verdict("retry" if isinstance(error, (ConnectionError, TimeoutError)) else "stop")


@dataclass(frozen=True)
class Retries:
    """How often a target is asked again; times in seconds."""

    most: int = 1
    """Attempts on one target beyond the first."""
    first_wait: float = 0.2
    longest_wait: float = 2.0
    """Waits double up to this, each drawn between half and the whole; a longer Retry-After means: ask the next target."""
    patience: float | None = None
    """The most that one attempt may take until its first item, so that something is left for the others: the next is asked."""
    fair: float = 5.0
    """An attempt that is late although it had so many seconds, or all its patience, speaks against its target; one that had less
    does not, or callers in a hurry would shut a target for everybody."""

    def wait(self, attempt: int, verdict: Verdict, chance: float) -> float | None:
        """Return how long to wait after this attempt, from 1; None when the target is not to be asked again."""
        asked = verdict.retry_after or 0.0
        if verdict.then != "retry" or attempt > self.most or asked > self.longest_wait:
            return None
        drawn = min(self.first_wait * 2 ** min(attempt - 1, 32), self.longest_wait) * (1 + chance) / 2
        return max(drawn, asked)


class Deadline:
    """The time by which a request must be answered; None is never."""

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    @property
    def left(self) -> float | None:
        """Seconds left, never under 0."""
        return None if self._at is None else max(0.0, self._at - self._clock())


class NoTargetLeft(Exception):
    """No target answered, or none in time; `outcomes` are all attempts in order, `retry_after` when to come again if known."""

    def __init__(self, outcomes: Sequence[Outcome], *, late: bool, retry_after: float | None = None) -> None:
        tried = ", ".join(f"{outcome.target.name}: {outcome.reason}" for outcome in outcomes) or "nothing was tried"
        super().__init__(f"no target answered {'in time ' if late else ''}({tried})")
        self.outcomes, self.late, self.retry_after = tuple(outcomes), late, retry_after


class DeadlinePassed(TimeoutError):
    """A stream that had begun was not whole by its deadline."""


class Passed(Exception):
    """Raised by a call: this target has nothing to say, such as no saved answer; the next is asked."""


class NoAnswer(ConnectionError):
    """A stream ended before its first item."""


@dataclass(frozen=True)
class Attempts:
    """How targets are asked: everything that stays the same from request to request."""

    breakers: Breakers
    retries: Retries = Retries()
    judge: Judge = judge_plainly
    waking: Callable[[Target], bool] = lambda _: False
    """Whether a target is only being started: that it is late does not speak against it then."""
    told: Callable[[Outcome], None] = lambda _: None
    chance: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Clock = time.monotonic

    async def answer(
        self, targets: Sequence[Target], call: Callable[[Target, float | None], Awaitable[Answer]], deadline: Deadline
    ) -> tuple[Target, Answer]:
        """Return the first answer, and whose it is. `call` is given the target and the seconds that it has, None for any.

        Raises NoTargetLeft, or the error that the judge stopped at.
        """
        begun, answer = await self._first(targets, call, deadline)
        begun.end("answered")
        return begun.target, answer

    async def stream(
        self,
        targets: Sequence[Target],
        call: Callable[[Target, float | None], AsyncGenerator[Item]],
        deadline: Deadline,
        *,
        whole: bool = True,
    ) -> Stream[Item]:
        """Return the first stream whose first item came. Close it, or use it as a context: that closes the target's at once.

        The deadline is for the whole stream, or for its first item alone. Raises as `answer` does; what the stream raises later
        is passed on, and DeadlinePassed.
        """  # fmt: skip

        async def first(target: Target, left: float | None) -> tuple[AsyncGenerator[Item], Item]:
            items = call(target, left)
            try:
                return items, await anext(items)
            except StopAsyncIteration:
                raise NoAnswer("the stream ended before its first item") from None
            except BaseException:
                await items.aclose()
                raise

        begun, (items, item) = await self._first(targets, first, deadline)
        return Stream(begun, items, item, deadline if whole and not begun.target.local else Deadline(None))

    async def _first(
        self, targets: Sequence[Target], call: Callable[[Target, float | None], Awaitable[Answer]], deadline: Deadline
    ) -> tuple[_Attempt, Answer]:
        outcomes: list[Outcome] = []
        retry_after: list[float] = []
        for target in targets:
            for number in range(1, self.retries.most + 2):
                if deadline.left == 0 and not target.local:
                    break
                breaker = self.breakers.of(target.name, target.adapter)
                attempt = _Attempt(self, target, number, None if target.local else breaker.permit(), outcomes)
                if attempt.permit is None and not target.local:
                    retry_after.append(breaker.retry_after)
                    attempt.end("open")
                    break
                left = None if target.local else _shorter(deadline.left, self.retries.patience)
                try:
                    async with asyncio.timeout(left):
                        return attempt, await call(target, left)
                except Exception as error:
                    verdict = self._verdict(error, left, target)
                    if verdict.then == "stop":
                        attempt.end("refused", error)
                        raise
                    attempt.end(_reason(error), error, counts=verdict.counts)
                    if verdict.retry_after is not None:
                        retry_after.append(verdict.retry_after)
                    wait = self.retries.wait(number, verdict, self.chance()) if target.local or breaker.allows else None
                    if wait is None or (deadline.left is not None and wait >= deadline.left):
                        break
                    await self.sleep(wait)
                except BaseException:
                    attempt.end("left")
                    raise
        raise NoTargetLeft(outcomes, late=deadline.left == 0, retry_after=min(retry_after, default=None))

    def _verdict(self, error: Exception, left: float | None, target: Target) -> Verdict:
        if isinstance(error, Passed):
            return Verdict("next", counts=False)
        if not isinstance(error, TimeoutError):
            return self.judge(error)
        fair = self.retries.fair if self.retries.patience is None else min(self.retries.fair, self.retries.patience)
        impatient = left is not None and left == self.retries.patience
        counts = (left is None or left >= fair) and not self.waking(target)
        return Verdict("next" if impatient else "retry", counts=counts)


class _Attempt:
    """One attempt under way: settles its permit and tells its outcome, once."""

    def __init__(self, attempts: Attempts, target: Target, number: int, permit: Permit | None, outcomes: list[Outcome]) -> None:
        self._attempts, self.target, self._number, self.permit, self._outcomes = attempts, target, number, permit, outcomes
        self._begun = attempts.clock()
        self._ended = False

    def end(self, reason: Reason, error: Exception | None = None, *, counts: bool = True) -> None:
        """Settle; later calls change nothing."""
        if self._ended:
            return
        self._ended = True
        if self.permit is not None:
            if reason in {"answered", "refused"}:
                self.permit.succeeded()
            elif reason in {"failed", "late", "broken"} and counts:
                self.permit.failed()
            else:
                self.permit.abandoned()
        outcome = Outcome(self.target, reason, self._number, self._attempts.clock() - self._begun, error)
        self._outcomes.append(outcome)
        self._attempts.told(outcome)


class Stream(Generic[Item]):
    """A stream that has begun; `target` is whose it is."""

    def __init__(self, attempt: _Attempt, items: AsyncGenerator[Item], first: Item, deadline: Deadline) -> None:
        self.target = attempt.target
        self._attempt, self._items, self._deadline = attempt, items, deadline
        self._first: list[Item] = [first]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._first:
            return self._first.pop()
        limit = asyncio.timeout(self._deadline.left)
        try:
            async with limit:
                return await anext(self._items)
        except StopAsyncIteration:
            self._attempt.end("answered")
            raise
        except TimeoutError as error:
            self._attempt.end("late" if limit.expired() else "broken", error, counts=not limit.expired())
            await self._items.aclose()
            if limit.expired():
                raise DeadlinePassed("the answer was not whole by its deadline") from error
            raise
        except Exception as error:
            self._attempt.end("broken", error)
            raise
        except BaseException:
            await self.aclose()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the target's stream; one that is not at its end counts as left by its caller."""
        self._attempt.end("left")
        await self._items.aclose()


def _shorter(left: float | None, right: float | None) -> float | None:
    return min((limit for limit in (left, right) if limit is not None), default=None)


def _reason(error: Exception) -> Reason:
    return "passed" if isinstance(error, Passed) else "late" if isinstance(error, TimeoutError) else "failed"
