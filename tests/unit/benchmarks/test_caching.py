"""The workload of the cache's benchmark."""

import pytest

from benchmarks.caching import split, workload
from cache.evaluate import plain
from cache.judged import Pair

PAIRS = [Pair(f"how {n}", f"in what way {n}", True) for n in range(200)] + [
    Pair(f"why {n}", f"who {n}", False) for n in range(400)
]


@pytest.mark.parametrize("verbatim", [False, True])
def test_three_in_ten_repeat_what_was_asked_before(verbatim):
    requests = workload(PAIRS, 500, verbatim=verbatim, seed=1)
    first = {}
    for place, request in enumerate(requests):
        first.setdefault(plain(request.question), place)

    repeats = [place for place, request in enumerate(requests) if request.repeat]
    assert len(requests) == 500
    assert len(repeats) == 150
    for place in repeats:
        number = requests[place].question.split()[-1]
        assert first[f"how {number}"] < place
    assert any(requests[place].question.startswith("how") for place in repeats) == verbatim


def test_the_share_is_kept_where_pairs_are_few():
    requests = workload(PAIRS[:230], 2000, verbatim=False, seed=1)

    assert sum(request.repeat for request in requests) / len(requests) == pytest.approx(0.3, abs=0.01)


def test_halves_have_no_question_in_common():
    chained = [*PAIRS, Pair("in what way 1", "how 2", True), Pair("how 3", "why 3", False)]

    one, other = split(chained)

    assert one
    assert other
    texts = [{text for pair in half for text in (pair.one, pair.other)} for half in (one, other)]
    assert not texts[0] & texts[1]
