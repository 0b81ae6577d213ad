"""What training does before and after the fit: rows by licence, groups, and the scale of the scores."""

import json

import numpy as np
import pytest

from guards.thresholds import BLOCK, FLAG
from guards.train_classifier import read_rows, scale


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


def test_texts_with_one_beginning_stay_together(write):
    start = "The same forty characters begin both of these, and "

    rows = read_rows(write({"text": start + "one", "licence": "MIT"}, {"text": start.upper() + "2", "licence": "MIT"}), dev=True)

    assert rows[0].fold == rows[1].fold


def test_a_line_separator_inside_a_text_ends_no_row(write):
    assert len(read_rows(write({"text": "one\u2028two", "licence": "MIT"}), dev=True)) == 1


def test_a_bad_row_is_named(write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_rows(write({"text": "x", "licence": "MIT"}, {"text": "x"}), dev=True)


def test_the_scale_lets_few_harmless_texts_over_the_thresholds():
    chance = np.random.default_rng(0)
    values, labels = np.concatenate([chance.normal(0, 1, 1000), chance.normal(3, 1, 100)]), np.repeat([0, 1], [1000, 100])

    slope, shift = scale(values, labels)

    scores = 1 / (1 + np.exp(-(slope * values[:1000] + shift)))
    assert (scores >= BLOCK).mean() <= 0.01
    assert 0.02 < (scores >= FLAG).mean() <= 0.05
