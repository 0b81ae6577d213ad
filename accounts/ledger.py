"""Spend against budgets: reserved before a request, settled after it, written to the database in the background.

What this process spends or has reserved counts at once; what other replicas spend counts once they have written it and it was
read here: within flush_seconds + refresh_seconds. So budgets are overrun by no more than what in-flight requests cost over their
estimates here, and by what the other replicas spent in that time or have in flight. When the process is killed, spend of the last
flush_seconds is lost to the database; the audit trail has it.

While the database is away, requests with a budget are refused once what is known is older than stale_seconds; spend is kept and
written when it is back. A batch that may have been written or not is sent again under its identity, and counts once.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from accounts.budgets import Alert, Budget, BudgetExceeded, Level, Subject, periods
from accounts.database import DatabaseUnavailable
from accounts.spend import KEPT_SECONDS, Account, Sums, apply, claim, forget_batches, spent

FLUSH_SECONDS = 0.25
REFRESH_SECONDS = 1.0
STALE_SECONDS = 5.0
TIMEOUT_SECONDS = 3.0
RETRY_SECONDS = 1.0
IDLE_SECONDS = 600.0
MAX_ROWS = 10_000
_T = TypeVar("_T")
_AWAY = "the database of spend does not answer"


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What one request took."""

    tenant: str
    key: str = ""
    route: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    micros: int = 0


@dataclass
class _View:
    """What is known of a subject."""

    day: str = ""
    written: dict[str, int] = field(default_factory=dict)
    """By period, in the database when it was last read."""
    own: dict[str, int] = field(default_factory=dict)
    """By period, not yet in the database."""
    reserved: int = 0
    read: float = 0.0
    used: float = 0.0

    def spent(self, period: str) -> int:
        return self.written.get(period, 0) + self.own.get(period, 0)


class Reservation:
    """The estimated cost of a request under way; give it back, or settle it, in `finally`."""

    def __init__(self, ledger: Ledger, budgets: Mapping[Subject, Budget], micros: int) -> None:
        self._ledger, self._budgets, self._micros = ledger, budgets, micros
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def settle(self, spend: Spend) -> None:
        """Record what was really spent, and give the rest back; the first call counts."""
        if self._open:
            self._ledger.record(spend)
            self.release()
            self._ledger.watch(self._budgets)

    def release(self) -> None:
        """Give it all back."""
        if self._open:
            self._open = False
            self._ledger.give_back(self._budgets, self._micros)


class Ledger:
    """The spend of this process and, through the database, of its replicas. It lives on one event loop."""

    def __init__(
        self,
        database: Callable[[], Awaitable[AsyncEngine]],
        on_alert: Callable[[Alert], Any] = lambda _alert: None,
        on_trouble: Callable[[str], Any] = lambda _message: None,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        refresh_seconds: float = REFRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`database` raises DatabaseUnavailable while there is none. The callbacks return at once.

        A trouble is told once; "" is told when the database is back.
        """
        self._database, self._on_alert, self._on_trouble, self._clock = database, on_alert, on_trouble, clock
        self._flush_seconds, self._refresh_seconds = flush_seconds, refresh_seconds
        self._stale_seconds, self._timeout = stale_seconds, timeout_seconds
        self._views: dict[Subject, _View] = {}
        self._open: dict[Account, Sums] = {}
        self._sending: tuple[str, dict[Account, Sums]] | None = None
        self._alerts: list[Alert] = []
        self._told: set[tuple[Subject, str, Level]] = set()
        self._lock = asyncio.Lock()
        self._asking: asyncio.Future[Any] | None = None
        self._down_until = 0.0
        self._refreshed = self._swept = 0.0
        self._trouble = self._fault = ""
        self.lost = 0
        """Requests whose spend found no room while the database was away."""

    @property
    def away(self) -> bool:
        """Whether the database did not answer when it was last asked."""
        return bool(self._trouble)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Self]:
        """Write and read in the background; at the end, write what there is."""
        task = asyncio.create_task(self._run(), name="ledger")
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._down_until = 0.0
            await self._trying(self._drain)
            if self._asking is not None:  # its connection is to be given back before the database is closed
                await asyncio.wait({self._asking}, timeout=self._timeout)

    async def reserve(self, budgets: Mapping[Subject, Budget], micros: int) -> Reservation:
        """Set an estimated cost aside, of all budgets or none.

        Raises BudgetExceeded when it does not fit or a budget is spent, and DatabaseUnavailable when what was spent is not known.
        Without budgets nothing is asked and nothing refused.
        """
        budgets = {_fitting(subject): budget for subject, budget in budgets.items()}
        await self._know(budgets)
        # Nothing is awaited from here on: no other request comes between looking and taking.
        now = self._clock()
        for subject, budget in budgets.items():
            view = self._views[subject]
            for period, limit in budget.limits(now):
                taken = view.spent(period) + view.reserved
                if view.spent(period) >= limit or taken + micros > limit:
                    self.watch({subject: budget})
                    raise BudgetExceeded(subject, period, limit, taken, micros)
        for subject in budgets:
            self._views[subject].reserved += micros
        return Reservation(self, budgets, micros)

    async def check(self, budgets: Mapping[Subject, Budget]) -> None:
        """Raise BudgetExceeded when a budget is spent, and DatabaseUnavailable when that is not known."""
        (await self.reserve(budgets, 0)).release()

    def record(self, spend: Spend) -> None:
        """Add what a request took; it is in the database within flush_seconds."""
        day, month = periods(self._clock())
        account = Account(day, _fit(spend.tenant, 128), _fit(spend.key, 16), _fit(spend.route, 128))
        if account not in self._open and len(self._open) >= MAX_ROWS:
            self.lost += 1
            if self.lost == 1:
                self._on_trouble("the database is away for so long that spend finds no room; it is in the audit trail only")
            return
        sums = self._open.setdefault(account, Sums())
        sums.requests += 1
        sums.prompt_tokens += spend.prompt_tokens
        sums.cached_tokens += spend.cached_tokens
        sums.completion_tokens += spend.completion_tokens
        sums.micros += spend.micros
        for subject in _subjects(account):
            own = self._view(subject).own
            for period in (day, month):
                own[period] = own.get(period, 0) + spend.micros

    def give_back(self, subjects: Iterable[Subject], micros: int) -> None:
        """Take a reservation back."""
        for subject in subjects:
            self._view(subject).reserved -= micros

    def watch(self, budgets: Mapping[Subject, Budget]) -> None:
        """Note the alerts that are due; they are told in the background."""
        now = self._clock()
        for subject, budget in budgets.items():
            for period, limit in budget.limits(now):
                used = self._view(subject).spent(period)
                levels: tuple[tuple[Level, float], ...] = (("soft", limit * budget.soft), ("hard", limit))
                for level, bound in levels:
                    if used >= bound and (subject, period, level) not in self._told:
                        self._told.add((subject, period, level))
                        self._alerts.append(Alert(subject, period, level, limit, used))

    async def flush(self) -> None:
        """Write what was recorded; raises DatabaseUnavailable, and then it is kept."""
        async with self._lock:
            if self._sending is None and self._open:
                self._sending, self._open = (uuid.uuid4().hex, self._open), {}
            if self._sending is None:
                return
            identity, rows = self._sending
            await self._ask(lambda engine: apply(engine, identity, rows, self._clock()))
            self._sending = None
            for account, sums in rows.items():
                for subject in _subjects(account):
                    view = self._views.setdefault(subject, _View())
                    for period in (account.day, account.day[:7]):
                        view.written[period] = view.written.get(period, 0) + sums.micros
                        left = view.own.pop(period, 0) - sums.micros
                        if left:
                            view.own[period] = left

    def _view(self, subject: Subject) -> _View:
        # One that nothing is reserved on and nobody asks for is forgotten; who held it may still come back.
        return self._views.setdefault(subject, _View())

    async def _drain(self) -> None:
        while self._sending is not None or self._open:  # a batch that was under way, and what came after it
            await self.flush()

    async def _know(self, subjects: Iterable[Subject]) -> None:
        if not any(self._unknown(subject) for subject in subjects):
            return
        async with self._lock:
            if missing := [subject for subject in subjects if self._unknown(subject)]:
                await self._read(missing)

    def _unknown(self, subject: Subject) -> bool:
        view = self._views.get(subject)
        if view is None:
            return True
        view.used = time.monotonic()
        return view.day != periods(self._clock())[0] or view.used - view.read > self._stale_seconds

    async def _read(self, subjects: Iterable[Subject]) -> None:
        day, month = periods(self._clock())
        asked = time.monotonic()
        for subject, (of_day, of_month) in (await self._ask(lambda engine: spent(engine, subjects, day))).items():
            view = self._view(subject)
            view.day, view.read, view.written = day, asked, {day: of_day, month: of_month}
            view.used = view.used or asked

    async def _ask(self, what: Callable[[AsyncEngine], Awaitable[_T]]) -> _T:
        """Ask the database, for so long; called under the lock. Who fails spares the next ones the waiting, for a second."""
        if time.monotonic() < self._down_until:
            raise DatabaseUnavailable(_AWAY)
        try:
            answer = await self._answer(what)
        except DatabaseUnavailable as error:
            self._down_until = time.monotonic() + RETRY_SECONDS
            self._tell(str(error))
            raise
        self._tell("")
        return answer

    async def _answer(self, what: Callable[[AsyncEngine], Awaitable[_T]]) -> _T:
        async def ask() -> _T:
            return await what(await self._database())

        if self._asking is not None:
            # Its caller has left, or did not wait any longer. It is not cancelled: drivers may hang on that.
            await asyncio.wait({self._asking}, timeout=self._timeout)
            if not self._asking.done():
                raise DatabaseUnavailable(_AWAY)
        task = self._asking = asyncio.ensure_future(ask())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({task}, timeout=self._timeout)
        if not task.done():
            raise DatabaseUnavailable(_AWAY)
        return task.result()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_seconds)
            await self._trying(self._turn)

    async def _turn(self) -> None:
        await self.flush()
        now = time.monotonic()
        if now - self._refreshed >= self._refresh_seconds:
            today = periods(self._clock())
            for subject, view in list(self._views.items()):
                if now - view.used > IDLE_SECONDS and not view.reserved and not view.own:
                    del self._views[subject]
            self._told = {one for one in self._told if one[1] in today}
            async with self._lock:
                if active := [subject for subject, view in self._views.items() if view.used]:
                    await self._read(active)
            self._refreshed = now
        while self._alerts:
            alert = self._alerts[0]
            async with self._lock:
                ours = await self._ask(partial(claim, alert=alert))
            self._alerts.pop(0)
            if ours:
                self._on_alert(alert)
        if now - self._swept >= KEPT_SECONDS / 24 or not self._swept or self._trouble:
            async with self._lock:
                await self._ask(lambda engine: forget_batches(engine, self._clock()))
            self._swept = now

    async def _trying(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except DatabaseUnavailable:
            pass  # told where it was asked
        except Exception as error:  # noqa: BLE001  a callback's fault must not end the writing
            fault = f"{type(error).__name__}: {error}"
            if fault != self._fault:
                self._fault = fault
                self._on_trouble(fault)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


def _subjects(account: Account) -> list[Subject]:
    found = [Subject("tenant", account.tenant)]
    return [*found, Subject("key", account.key)] if account.key else found


def _fitting(subject: Subject) -> Subject:
    return Subject(subject.kind, _fit(subject.name, 16 if subject.kind == "key" else 128))


def _fit(name: str, size: int) -> str:
    """Return a name that the database takes: one that it does not take would hold up every batch."""
    return name.encode("utf-8", "replace").decode().replace("\0", "")[:size]
