import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from rag.metrics import METRICS, compare, judge

NAMES = [f"d{number}" for number in range(30)]


def test_by_hand():
    """The second of two relevant documents is sixth: 1/log2(2) + 1/log2(7) of 1/log2(2) + 1/log2(3)."""
    told = dict(zip(METRICS, judge(["a", "x", "y", "z", "v", "b"], {"a": 1, "b": 1}), strict=True))

    assert told == pytest.approx({"ndcg@10": 1.3562071871 / 1.6309297536, "recall@5": 0.5, "recall@20": 1.0, "mrr@10": 1.0})


def test_grades_are_gains_as_they_stand():
    """3/log2(3) + 1/log2(4) of 3/log2(2) + 1/log2(3): linear, not exponential."""
    assert judge(["x", "a", "b"], {"a": 3, "b": 1})[0] == pytest.approx(2.3927892607 / 3.6309297536)


@pytest.mark.parametrize("ranking", [[], ["x"], ["x"] * 40])
def test_nothing_found_is_zero(ranking):
    assert judge(ranking, {"a": 1}) == (0, 0, 0, 0)


def test_an_eleventh_place_counts_for_recall_only():
    assert judge(["x"] * 10 + ["a"], {"a": 1}) == (0, 0, 1, 0)


@given(st.permutations(NAMES), st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1))
def test_ndcg_is_scikit_learns(ranking, grades):
    truth = [[grades.get(name, 0) for name in ranking]]

    assert judge(ranking, grades)[0] == pytest.approx(ndcg_score(truth, [range(len(ranking), 0, -1)], k=10))


def test_a_difference_that_is_there():
    random = np.random.default_rng(1)
    other = random.random(300)
    told = compare(other + 0.05 + random.normal(0, 0.1, 300), other)

    assert told.low < told.mean < told.high
    assert told.low > 0
    assert told.p < 0.001


def test_p_of_few_queries_is_exact():
    """Four queries, all better: of 16 signs two are as extreme."""
    told = compare([0.5, 0.6, 0.7, 0.9], [0.4, 0.4, 0.4, 0.5])

    assert told.p == pytest.approx(2 / 16, abs=0.02)


def test_equal_systems_do_not_differ():
    told = compare([0.2, 0.4], [0.2, 0.4])

    assert (told.mean, told.low, told.high, told.p) == (0, 0, 0, 1)
