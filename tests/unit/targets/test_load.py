import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.load import Load, MovingAverage


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_half_life():
    clock = Clock()
    average = MovingAverage(half_life=10, stale=60, clock=clock)
    average.add(1.0)
    clock.now = 10
    average.add(4.0)

    assert average.value == pytest.approx(3.0)


def test_what_is_stale_is_forgotten():
    clock = Clock()
    average = MovingAverage(half_life=10, stale=60, clock=clock)
    average.add(100.0)
    clock.now = 61

    assert average.value is None
    average.add(1.0)
    assert average.value == 1.0


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 100)), min_size=1))
def test_an_average_lies_among_its_values(steps):
    clock = Clock()
    average = MovingAverage(clock=clock)
    for seconds, value in steps:
        clock.now += seconds
        average.add(value)
    values = [value for _, value in steps]

    assert average.value is not None
    assert min(values) - 1e-6 <= average.value <= max(values) + 1e-6


def test_a_load_counts_and_times_requests_once():
    clock = Clock()
    load = Load(clock=clock)
    one, other = load.begin(), load.begin()

    assert load.in_flight == 2
    clock.now = 2
    one.first_token()
    clock.now = 6
    one.first_token()
    one.end()
    one.end()
    assert (load.in_flight, load.ttft, load.latency) == (1, 2.0, 6.0)
    other.end(whole=False)
    assert (load.in_flight, load.latency) == (0, 6.0)


def test_times_of_a_request_that_waited_for_a_start_say_nothing():
    clock = Clock()
    load = Load(clock=clock)
    flight = load.begin(measured=False)
    clock.now = 30

    assert load.in_flight == 1
    flight.first_token()
    flight.end()
    assert (load.in_flight, load.ttft, load.latency) == (0, None, None)


def test_a_half_life_longer_than_all_memory_is_refused():
    with pytest.raises(ValueError, match="half_life"):
        MovingAverage(half_life=10, stale=5)
