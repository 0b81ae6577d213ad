"""Errors of limits and of admission, as HTTP shows them."""

import pytest

from services.errors import Overloaded, RateLimited, Unavailable

LIMITS = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}


@pytest.mark.parametrize(("seconds", "header"), [(0.001, "1"), (1.0, "1"), (17.2, "18")])
def test_a_limit_says_when_to_come_back(seconds, header):
    error = RateLimited("Limit of requests a minute reached.", retry_after=seconds, limits=LIMITS)

    assert error.status == 429
    assert error.body()["error"]["type"] == "rate_limit_error"
    assert error.body()["error"]["code"] == "rate_limit_exceeded"
    assert error.headers() == {**LIMITS, "retry-after": header}


def test_what_can_never_pass_is_not_to_be_tried_again():
    assert RateLimited("Ask for less.").headers() == {"x-should-retry": "false"}


def test_an_engine_with_too_much_work_is_a_503():
    error = Overloaded("The queue is full.", retry_after=7)

    assert isinstance(error, Unavailable)
    assert (error.status, error.body()["error"]["code"], error.headers()) == (503, "overloaded", {"retry-after": "7"})
