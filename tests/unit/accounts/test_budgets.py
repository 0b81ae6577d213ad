"""Days and months of UTC, and what a budget tells."""

from datetime import UTC, datetime

import pytest

from accounts.budgets import Budget, BudgetExceeded, Subject, periods, resets_at


def at(*when):
    return datetime(*when, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "end"),
    [("2026-01-31", (2026, 2, 1)), ("2026-12-31", (2027, 1, 1)), ("2026-12", (2027, 1, 1)), ("2028-02", (2028, 3, 1)),
     ("2028-02-28", (2028, 2, 29)), ("2026-01", (2026, 2, 1))],
)  # fmt: skip
def test_a_period_ends_where_the_next_begins(period, end):
    assert resets_at(period) == at(*end)
    assert period not in periods(at(*end))
    assert period in periods(at(*end) - 0.001)


def test_only_what_is_limited_is_looked_at():
    now = at(2026, 3, 4)

    assert Budget(day=5).limits(now) == [("2026-03-04", 5)]
    assert Budget(month=7).limits(now) == [("2026-03", 7)]
    assert Budget().limits(now) == []


def test_the_message_says_who_how_much_and_until_when():
    error = BudgetExceeded(Subject("tenant", "acme"), "2026-01", 5_000_000, 4_500_001, 600_000)

    assert str(error) == (
        "the budget of the tenant 'acme' for 2026-01 is spent: 4.500001 of 5.000000, and this "
        "request may cost 0.600000; it begins anew at 2026-02-01T00:00Z"
    )
    assert error.resets_at == at(2026, 2, 1)


@pytest.mark.parametrize("wrong", [{"day": -1}, {"month": -1}, {"soft": 0}, {"soft": 1.1}])
def test_a_budget_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="budget"):
        Budget(**wrong)
