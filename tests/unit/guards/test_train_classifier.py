"""What training does before and after the fit: rows by licence, groups, and the scale of the scores."""

import json

import numpy as np
import pytest

from guards.thresholds import BLOCK, FLAG
from guards.train_classifier import fold, read_rows, scale


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps({"label": 1, "source": "s", **row}, ensure_ascii=False) for row in rows) + "\n")
        return path

    return write


def test_rows_with_closed_licences_train_nothing(write):
    licences = ["MIT", "CC-BY-NC-SA-4.0 (evaluation only)", "unstated (research)"]

    rows = read_rows(write(*({"text": "x", "licence": licence} for licence in licences)), dev=False)

    assert [row.trains for row in rows] == [True, False, False]


def test_texts_with_one_beginning_stay_together():
    start = "The same forty characters begin both of these, and "

    assert all(fold(start + "one", seed) == fold(start.replace(" ", "  ") + "2", seed) for seed in range(9))


def test_another_seed_makes_other_folds():
    assert len({fold("one text", seed) for seed in range(30)}) == 5


def test_a_line_separator_inside_a_text_ends_no_row(write):
    assert len(read_rows(write({"text": "one\u2028two", "licence": "MIT"}), dev=True)) == 1


def test_a_bad_row_is_named(write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_rows(write({"text": "x", "licence": "MIT"}, {"text": "x"}), dev=True)


def test_the_scale_lets_few_harmless_texts_over_the_thresholds():
    values = np.random.default_rng(0).normal(0, 1, 1000)

    slope, shift = scale(values, np.ones(1000), (0.005, 0.04))

    scores = 1 / (1 + np.exp(-(slope * values + shift)))
    assert (scores >= BLOCK).mean() <= 0.01
    assert 0.02 < (scores >= FLAG).mean() <= 0.05


def test_the_scale_counts_a_text_as_often_as_it_stands_for():
    values = np.linspace(0, 1, 1000)
    low, high = (scale(values, counts, (0.005, 0.04)) for counts in (np.linspace(2, 0.01, 1000), np.linspace(0.01, 2, 1000)))

    assert -high[1] / high[0] > -low[1] / low[0]
