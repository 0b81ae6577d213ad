"""Figures of a cache on judged pairs, intervals, and calibration."""

import gzip
import json

import numpy as np
import pytest

from cache.calibration import Calibration, load_calibration
from cache.evaluate import at, best, measured, report
from cache.intervals import clopper_pearson, upper_bound
from cache.judged import BadPairs, Pair, read_pairs
from cache.train import threshold, train, write


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (3, 1000, 0.0006, 0.0087), (0, 0, 0.0, 1.0)],
)
def test_intervals_are_those_of_the_tables(count, of, low, high):
    assert clopper_pearson(count, of) == pytest.approx((low, high), abs=1e-4)


def test_no_wrong_one_of_n_is_the_rule_of_three():
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), abs=1e-9)


def test_pairs_are_read_in_every_form(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    rows = [
        {"_id": "1", "a": "x", "b": "y", "label": 1},
        {"a": "x", "b": "z", "label": False},
        {"question1": "p", "question2": "q", "label": "different"},
        {"origin": "p", "similar": "r"},
    ]
    with gzip.open(path, "wt") as file:
        file.write("\n\n".join(map(json.dumps, rows)))

    assert read_pairs(path) == [Pair("x", "y", True), Pair("x", "z", False), Pair("p", "q", False), Pair("p", "r", True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "p.jsonl:2: no JSON"),
        ("[1]", "p.jsonl:2: wanted is an object"),
        ('{"a": "x", "label": 1}', "p.jsonl:2: wanted is an object"),
        ('{"a": "x", "b": "", "label": 1}', "p.jsonl:2: `b` must be a text"),
        ('{"a": "x", "b": 3, "label": 1}', "p.jsonl:2: `b` must be a text"),
        ('{"a": "x", "b": "y"}', "p.jsonl:2: `label` must be"),
        ('{"a": "x", "b": "y", "label": 2}', "p.jsonl:2: `label` must be"),
        ('{"a": "x", "b": "y", "label": [1]}', "p.jsonl:2: `label` must be"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": "x", "b": "y", "label": 1}\n' + line + "\n")

    with pytest.raises(BadPairs, match=message):
        read_pairs(path)


def test_files_without_pairs_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "plain.jsonl.gz").write_text("x")

    for name, message in (("empty.jsonl", "no pairs"), ("plain.jsonl.gz", "cannot be read"), ("none.jsonl", "cannot be read")):
        with pytest.raises(BadPairs, match=message):
            read_pairs(tmp_path / name)


COSINE = Calibration("m", {"cosine": 50.0}, -45.0, {"pairs": {0.01: 0.9}})


def _vector(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def test_a_look_up_is_right_by_any_chain_of_judgements_and_its_own_entry_is_left_out_for_singles(facts):
    pairs = [Pair("red one", "red two", True), Pair("red two", "red three", True), Pair("blue", "blue sky", False)]
    vectors = np.array([[_vector(0), _vector(2)], [_vector(2), _vector(1)], [_vector(80), _vector(81)]], dtype=np.float32)

    data = measured(pairs, vectors, facts)
    scores, right, own = best(data.lookups, None)

    assert right.tolist() == [True, True, False]
    assert own.tolist() == [False, True, False]
    assert scores[2] == 0.0, "nothing else is near"
    assert len(set(data.groups.tolist())) == 2


def test_figures_count_what_they_say():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    right = np.array([True, False, True, False, True])
    same = np.array([True, False, True, False, True])

    found = at(scores, right, same, 0.65)

    assert (found["hits"], found["wrong"]) == (3, 1)
    assert found["hit_rate"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["wrong_rate"]["share"] == 0.2
    assert found["precision"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert at(scores, right, same, 0.95)["precision"] == {"share": None, "low": 0.0, "high": 1.0}


def _made(rng, count, noise):
    """Return pairs whose vectors are near where they are the same, with some that are near and are not."""
    pairs, vectors = [], []
    for number in range(count):
        same = number % 2 == 0
        one = rng.normal(size=16)
        other = one + rng.normal(size=16) * (0.2 if same or rng.random() < noise else 1.5)
        pairs.append(
            Pair(f"word{number} alpha", f"word{number} alpha", same) if same else Pair(f"w{number} beta", f"v{number} beta", same)
        )
        vectors.append([one, other])
    return pairs, np.array(vectors, dtype=np.float32)


def test_training_keeps_to_the_bound_on_pairs_it_has_not_seen(facts, tmp_path):
    rng = np.random.default_rng(3)
    data = measured(*_made(rng, 1200, 0.02), facts)

    made, figures = train({"made": data}, "m")

    assert 0.01 in made.thresholds["pairs"]
    fresh = measured(*_made(np.random.default_rng(4), 1200, 0.02), facts)
    told = report(fresh, made)
    assert told["pairs"]["calibrated"]["pairs <= 0.01"]["wrong_rate"]["low"] <= 0.01
    assert told["pairs"]["calibrated"]["pairs <= 0.01"]["hit_rate"]["share"] > 0.5
    assert any(title.startswith("made: pairs, out of fold") for title in figures)
    write(made, {"made": data}, tmp_path / "c.yaml")
    again = load_calibration(tmp_path / "c.yaml", "m")
    assert again.thresholds == made.thresholds
    assert "alpha" not in (tmp_path / "c.yaml").read_text()


def test_training_needs_pairs_of_both_kinds(facts):
    data = measured([Pair("a b", "a c", True)] * 3, np.ones((3, 2, 2), dtype=np.float32), facts)

    with pytest.raises(ValueError, match="both labels"):
        train({"one": data}, "m")


def test_a_threshold_is_the_least_that_keeps_the_bound_and_none_where_too_few_pass():
    scores = np.linspace(1, 0.01, 1000)
    right = np.ones(1000, dtype=bool)
    right[300:] = False

    found = threshold(scores, right, 0.01)

    wrong = int((~right[scores >= found]).sum())
    assert upper_bound(wrong, 1000) <= 0.01 < upper_bound(wrong + 1, 1000)
    assert threshold(scores, ~right, 0.005) is None


def test_the_report_of_pairs_of_one_label_has_look_ups_only(facts):
    pairs = [Pair(f"q{n} x", f"q{n} y", True) for n in range(4)]
    vectors = np.array([[_vector(20 * n), _vector(20 * n + 1)] for n in range(4)], dtype=np.float32)

    told = report(measured(pairs, vectors, facts), COSINE)

    assert "pairs" not in told
    assert told["lookups"]["precision_at"]["0.5"]["cosine"] == 1.0
    json.dumps(told)
