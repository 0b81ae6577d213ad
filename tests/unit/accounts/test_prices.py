"""Costs are exact, and rounded up once."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.prices import Price, micros_of, shown

MONEY = st.decimals(min_value=0, max_value=10_000, places=6)
TOKENS = st.integers(0, 10_000_000)


def test_a_price_of_a_million_tokens_is_micros_a_token():
    price = Price(prompt=Decimal("2.5"), cached=Decimal("0.25"), completion=Decimal(10))

    assert price.micros(1000, 100) == 3500
    assert price.micros(1000, 100, cached_tokens=400) == 600 * 2.5 + 400 * 0.25 + 1000


def test_without_a_price_of_their_own_cached_tokens_cost_as_others():
    assert Price(prompt=Decimal(2)).micros(10, 0, 7) == 20


def test_a_small_request_is_not_free():
    assert Price(prompt=Decimal("0.05")).micros(1, 0) == 1
    assert Price(prompt=Decimal("0.05")).micros(0, 0) == 0


@given(prompt=MONEY, cached=MONEY, completion=MONEY, tokens=TOKENS, hits=TOKENS, answer=TOKENS)
def test_a_cost_is_the_exact_sum_rounded_up(prompt, cached, completion, tokens, hits, answer):
    hits = min(hits, tokens)
    cost = Price(prompt, completion, cached).micros(tokens, answer, hits)
    exact = Fraction(prompt) * (tokens - hits) + Fraction(cached) * hits + Fraction(completion) * answer

    assert 0 <= cost - exact < 1


@pytest.mark.parametrize("value", [Decimal(-1), Decimal("NaN"), Decimal("Infinity"), 0.1])
def test_what_is_no_price_is_refused(value):
    with pytest.raises(ValueError, match="price 'prompt'"):
        Price(prompt=value)


@pytest.mark.parametrize("counts", [(-1, 0, 0), (1, -1, 0), (1, 0, 2), (1, 0, -1)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match="tokens"):
        Price().micros(*counts)


def test_amounts_become_micros_and_are_shown():
    assert micros_of(Decimal("12.34")) == 12_340_000
    assert [shown(value) for value in (0, 1, 12_340_000, -1)] == ["0.000000", "0.000001", "12.340000", "-0.000001"]
    with pytest.raises(ValueError, match="not negative"):
        micros_of(Decimal(-1))
