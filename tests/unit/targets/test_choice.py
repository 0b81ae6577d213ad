import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.choice import Candidate, by_complexity, cheapest, fixed, least_busy, rendezvous, weighted

A, B, C = Candidate("a"), Candidate("b"), Candidate("c")
SOME = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        weight=st.floats(0, 10),
        price_in=st.floats(0, 5),
        in_flight=st.integers(0, 50),
        ttft=st.none() | st.floats(0, 5),
        healthy=st.booleans(),
    ),
    max_size=6,
)


def names(candidates):
    return [candidate.name for candidate in candidates]


@given(SOME, st.text())
def test_every_strategy_returns_all_and_the_healthy_first(candidates, key):
    ordered = [
        fixed(candidates),
        weighted(candidates, key),
        weighted(candidates),
        least_busy(candidates),
        cheapest(candidates, tokens_in=10, tokens_out=10, budget=1),
    ]
    if candidates:
        ordered.append(by_complexity(candidates, 0.5, [0.5] * (len(candidates) - 1)))
    for order in ordered:
        assert sorted(names(order)) == sorted(names(candidates))
        healthy = [candidate.healthy for candidate in order]
        assert healthy == sorted(healthy, reverse=True)


def test_fixed_keeps_the_order_but_for_the_unhealthy():
    assert names(fixed([A, replace(B, healthy=False), C])) == ["a", "c", "b"]


@pytest.mark.parametrize("keyed", [True, False])
def test_weighted_gives_each_its_share(keyed):
    chance = random.Random(1).random
    candidates = [replace(A, weight=1), replace(B, weight=2), replace(C, weight=7)]
    first = Counter(weighted(candidates, f"user-{n}" if keyed else None, chance)[0].name for n in range(10_000))

    assert first["a"] == pytest.approx(1000, abs=150)
    assert first["b"] == pytest.approx(2000, abs=200)
    assert first["c"] == pytest.approx(7000, abs=250)


def test_weighted_zero_is_asked_only_when_others_fail():
    candidates = [replace(A, weight=0), B, C]

    assert all(weighted(candidates, str(n))[-1].name == "a" for n in range(200))


def test_weighted_keeps_keys_where_they_are_when_a_target_leaves():
    """Only the keys of the one that left move, and they spread over the others by weight."""
    candidates = [A, B, replace(C, weight=2)]
    before = {str(n): weighted(candidates, str(n)) for n in range(3000)}
    moved: Counter[str] = Counter()
    for key, order in before.items():
        now = weighted([A, replace(C, weight=2)], key)
        if order[0].name == "b":
            moved[now[0].name] += 1
        else:
            assert now[0].name == order[0].name

    assert moved["c"] == pytest.approx(2 * moved["a"], rel=0.25)


@given(st.text(), st.text(), st.floats(1e-6, 1e6))
def test_rendezvous_is_finite_and_grows_with_the_weight(key, name, weight):
    assert 0 < rendezvous(key, name, weight) < rendezvous(key, name, weight * 2) < float("inf")


def test_least_busy_of_two_is_the_less_busy_by_weight():
    assert names(least_busy([replace(A, in_flight=3), replace(B, in_flight=2)])) == ["b", "a"]
    big = replace(A, in_flight=3, weight=4)
    assert names(least_busy([big, replace(B, in_flight=1)])) == ["a", "b"]


def test_least_busy_spreads_what_gateways_send_at_once():
    """With the same stale loads many gateways do not all take the one that was least busy."""
    chance = random.Random(2).random
    candidates = [replace(Candidate(str(n)), in_flight=n) for n in range(6)]
    first = Counter(least_busy(candidates, chance)[0].name for _ in range(3000))

    assert first["0"] == pytest.approx(1000, abs=120)  # it is in a third of all pairs
    assert first["5"] == 0


def test_least_busy_balances_better_than_chance():
    chance = random.Random(3)

    def fullest(choose) -> int:
        loads = [0] * 20
        for _ in range(2000):
            candidates = [Candidate(str(n), in_flight=load) for n, load in enumerate(loads)]
            loads[int(choose(candidates).name)] += 1
        return max(loads)

    assert fullest(lambda candidates: least_busy(candidates, chance.random)[0]) <= 104
    assert fullest(chance.choice) > 110


def test_cheapest_within_the_budget_then_by_time():
    dear, cheap, slow, slower = (
        Candidate("dear", price_out=5, ttft=0.1),
        Candidate("cheap", price_out=1, ttft=0.9),
        Candidate("slow", ttft=3),
        Candidate("slower", ttft=4),
    )
    order = cheapest([slower, slow, dear, cheap], tokens_in=100, tokens_out=100, budget=1)

    assert names(order) == ["cheap", "dear", "slow", "slower"]


def test_cheapest_weighs_prompt_and_answer():
    reads, writes = Candidate("reads", price_in=1, price_out=4), Candidate("writes", price_in=2, price_out=2)

    assert names(cheapest([reads, writes], tokens_in=1000, tokens_out=100))[0] == "reads"
    assert names(cheapest([reads, writes], tokens_in=100, tokens_out=1000))[0] == "writes"
    assert reads.cost(1000, 500) == 3


def test_cheapest_tries_what_is_not_known_and_takes_the_idle_of_equals():
    assert names(cheapest([Candidate("known", price_out=1, ttft=0.1), B], tokens_in=1, tokens_out=1, budget=1))[0] == "b"
    assert names(cheapest([replace(A, in_flight=1), B], tokens_in=1, tokens_out=1)) == ["b", "a"]


def test_cheapest_by_the_whole_answer():
    quick_start = Candidate("quick start", ttft=0.1, latency=9)

    assert names(cheapest([quick_start, replace(A, price_in=1, latency=1)], tokens_in=1, tokens_out=1, budget=2, whole=True)) == [
        "a",
        "quick start",
    ]


@pytest.mark.parametrize(("score", "order"), [(0.1, "abc"), (0.3, "bca"), (0.59, "bca"), (0.6, "cba"), (1.0, "cba")])
def test_by_complexity_takes_its_band_then_stronger_then_weaker(score, order):
    assert names(by_complexity([A, B, C], score, [0.3, 0.6])) == list(order)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted), st.floats(0, 1), st.floats(0, 1))
def test_a_harder_question_never_goes_to_a_weaker_target(thresholds, one, other):
    easier, harder = (by_complexity([A, B, C], score, thresholds)[0].name for score in sorted((one, other)))

    assert easier <= harder


def test_thresholds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="need 2 thresholds, not 1"):
        by_complexity([A, B, C], 0.5, [0.5])
    with pytest.raises(ValueError, match="ascend"):
        by_complexity([A, B, C], 0.5, [0.6, 0.5])


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"weight": float("nan")}, {"price_in": -0.1}])
def test_a_candidate_with_a_negative_number_is_refused(wrong):
    with pytest.raises(ValueError, match="'x'"):
        Candidate("x", **wrong)


def test_all_orders_come_up_when_nothing_tells_candidates_apart():
    chance = random.Random(4).random
    seen = {tuple(names(weighted([A, B, C], chance=chance))) for _ in range(300)}

    assert seen == set(itertools.permutations("abc"))
