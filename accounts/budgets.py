"""Budgets: how much a key or a tenant may spend in a day and in a month, both of UTC."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from accounts.prices import shown

Level = Literal["soft", "hard"]
_DAY_SECONDS = 86_400


class Subject(NamedTuple):
    """Who spends: a key by its id, or a tenant by its name."""

    kind: Literal["key", "tenant"]
    name: str


@dataclass(frozen=True)
class Budget:
    """Limits in micros; None is none. An alert is given at the soft share of either."""

    day: int | None = None
    month: int | None = None
    soft: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.soft <= 1 or any(limit is not None and limit < 0 for limit in (self.day, self.month)):
            raise ValueError(f"a budget's limits are not negative and its soft share is over 0 and at most 1: {self}")

    def limits(self, now: float) -> list[tuple[str, int]]:
        """Return the periods that are limited, as `period` names them, and their limits."""
        day, month = periods(now)
        return [(period, limit) for period, limit in ((day, self.day), (month, self.month)) if limit is not None]


class Alert(NamedTuple):
    """A budget whose soft share was reached, or that is spent; told once for each subject, period and level."""

    subject: Subject
    period: str
    level: Level
    limit: int
    spent: int


class BudgetExceeded(Exception):
    """A request may not be spent on; amounts are in micros, `resets_at` in seconds since 1970.

    `spent` holds what other requests have set aside; `asked` is what this one would have.
    """

    def __init__(self, subject: Subject, period: str, limit: int, spent: int, asked: int = 0) -> None:
        self.subject, self.period, self.limit, self.spent, self.asked = subject, period, limit, spent, asked
        self.resets_at = resets_at(period)
        anew = datetime.fromtimestamp(self.resets_at, UTC).strftime("%Y-%m-%dT%H:%MZ")
        super().__init__(
            f"the budget of the {subject.kind} {subject.name!r} for {period} is spent: {shown(spent)} of {shown(limit)}, "
            f"and this request may cost {shown(asked)}; it begins anew at {anew}"
        )


def periods(now: float) -> tuple[str, str]:
    """Return the day, 2026-01-31, and the month, 2026-01, of a time in seconds since 1970."""
    return _periods(int(now // _DAY_SECONDS))


@functools.lru_cache(maxsize=4)
def _periods(day: int) -> tuple[str, str]:
    """Return them of a day, counted from 1970: a request asks for them a few times."""
    told = datetime.fromtimestamp(day * _DAY_SECONDS, UTC).strftime("%Y-%m-%d")
    return told, told[:7]


def resets_at(period: str) -> float:
    """Return when a period is over, in seconds since 1970."""
    if len(period) == len("2026-01"):
        # 32 days from the first of a month lie in the next one.
        after = (datetime.fromisoformat(f"{period}-01").replace(tzinfo=UTC) + timedelta(days=32)).replace(day=1)
    else:
        after = datetime.fromisoformat(period).replace(tzinfo=UTC) + timedelta(days=1)
    return after.timestamp()
