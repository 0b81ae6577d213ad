import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.breaker import Breakers, BreakerSettings, CircuitBreaker, Permit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


SETTINGS = BreakerSettings(window_seconds=10, minimum_calls=4, failure_rate=0.5, open_seconds=5, jitter=0, probes=2)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def states():
    return []


@pytest.fixture
def breaker(clock, states):
    return CircuitBreaker(SETTINGS, clock=clock, told=states.append)


def permitted(breaker: CircuitBreaker) -> Permit:
    permit = breaker.permit()
    assert permit is not None
    return permit


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        permitted(breaker).failed()


def test_a_few_failures_conclude_nothing(breaker):
    fail(breaker, 3)

    assert breaker.state == "closed"


def test_opens_at_the_rate_and_refuses(breaker, states):
    permitted(breaker).succeeded()
    permitted(breaker).succeeded()
    fail(breaker, 2)

    assert breaker.state == "open"
    assert breaker.permit() is None
    assert breaker.retry_after == 5
    assert states == ["open"]


def test_failures_under_the_rate_leave_it_closed(breaker):
    for _ in range(20):
        permitted(breaker).succeeded()
        permitted(breaker).succeeded()
        permitted(breaker).failed()

    assert breaker.state == "closed"


def test_what_left_the_window_is_forgotten(breaker, clock):
    fail(breaker, 3)
    clock.now = 10.1
    fail(breaker, 1)

    assert breaker.state == "closed"


def test_half_open_lets_its_probes_through_and_closes_when_all_succeed(breaker, clock, states):
    fail(breaker, 4)
    clock.now = 5
    first, second = permitted(breaker), permitted(breaker)

    assert breaker.permit() is None
    first.succeeded()
    assert breaker.state == "half_open"
    second.succeeded()
    assert breaker.state == "closed"
    assert states == ["open", "half_open", "closed"]


def test_a_failed_probe_opens_for_longer_each_time_up_to_the_limit(clock):
    breaker = CircuitBreaker(
        BreakerSettings(minimum_calls=1, open_seconds=5, longest_open_seconds=15, backoff=2, jitter=0), clock=clock
    )
    waits = []
    for _ in range(4):
        permitted(breaker).failed()
        waits.append(breaker.retry_after)
        clock.now += waits[-1]

    assert waits == [5, 10, 15, 15]


def test_closing_ends_the_back_off(breaker, clock):
    fail(breaker, 4)
    clock.now = 5
    permitted(breaker).failed()
    clock.now = 15
    permitted(breaker).succeeded()
    permitted(breaker).succeeded()
    fail(breaker, 4)

    assert breaker.retry_after == 5


def test_a_probe_whose_caller_left_makes_room_for_another(breaker, clock):
    fail(breaker, 4)
    clock.now = 5
    first, _ = permitted(breaker), permitted(breaker)
    first.abandoned()

    assert breaker.permit() is not None


def test_a_call_from_before_says_nothing_about_the_time_after(breaker, clock):
    old, older = permitted(breaker), permitted(breaker)
    fail(breaker, 4)
    clock.now = 5
    old.succeeded()
    older.failed()

    assert breaker.state == "half_open"
    assert breaker.allows


def test_a_permit_settles_once(breaker):
    permit = permitted(breaker)
    for _ in range(10):
        permit.failed()

    assert breaker.state == "closed"


@given(st.floats(0, 1))
def test_jitter_stays_in_its_share(chance):
    breaker = CircuitBreaker(
        BreakerSettings(minimum_calls=1, open_seconds=10, jitter=0.2), clock=lambda: 0.0, chance=lambda: chance
    )
    permitted(breaker).failed()

    assert 8 - 1e-9 <= breaker.retry_after <= 12 + 1e-9


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "left", "wait"]), st.floats(0, 8)), max_size=80))
def test_whatever_happens_it_comes_back(happenings):
    """After any history, waiting long enough and answering well closes it: no permit is ever lost."""
    clock = Clock()
    breaker = CircuitBreaker(SETTINGS, clock=clock)
    for what, seconds in happenings:
        clock.now += seconds
        permit = breaker.permit()
        if permit is None or what == "wait":
            if permit is not None:
                permit.abandoned()
            continue
        {"ok": permit.succeeded, "bad": permit.failed, "left": permit.abandoned}[what]()
    clock.now += 1000
    for _ in range(SETTINGS.probes):
        permitted(breaker).succeeded()

    assert breaker.state == "closed"


def test_one_adapter_that_fails_does_not_shut_out_the_others(clock):
    told = []
    breakers = Breakers(SETTINGS, clock=clock, told=lambda *change: told.append(change))
    fail(breakers.of("engine", "travel"), 4)

    assert not breakers.of("engine", "travel").allows
    assert breakers.of("engine", "banking").allows
    assert breakers.of("engine").allows
    assert told == [("engine", "travel", "open")]
    assert breakers.states() == {("engine", "travel"): "open", ("engine", "banking"): "closed", ("engine", None): "closed"}
    breakers.forget("engine", "travel")
    assert breakers.of("engine", "travel").allows


@pytest.mark.parametrize(
    "wrong", [{"failure_rate": 0}, {"failure_rate": 1.1}, {"probes": 0}, {"open_seconds": 200}, {"jitter": 1}, {"backoff": 0.5}]
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match="a breaker's"):
        BreakerSettings(**wrong)
