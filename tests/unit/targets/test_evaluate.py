import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.evaluate import EvaluationError, Question, apgr, cpt, evaluate, read_questions, recovered

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: sum(strong - weak for _, weak, strong in rows) > 0
)


def columns(rows):
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True))


def by_hand(scores, weak, strong):
    """RouteLLM's definition taken literally: the quality at each share, less the weak model's, over the gap; its area."""
    order = np.argsort(-scores)
    quality = [(np.where(np.isin(np.arange(len(scores)), order[:k]), strong, weak)).mean() for k in range(len(scores) + 1)]
    parts = (np.array(quality) - weak.mean()) / (strong.mean() - weak.mean())
    return float(np.mean((parts[1:] + parts[:-1]) / 2))


@given(ROWS)
def test_apgr_is_the_area_under_the_part_of_the_gap_recovered(rows):
    scores, weak, strong = columns(rows)
    scores = np.random.default_rng(0).permutation(len(scores)).astype(float)  # no two alike

    assert apgr(scores, weak, strong) == pytest.approx(by_hand(scores, weak, strong))


@given(ROWS)
def test_one_score_for_all_is_chance(rows):
    _, weak, strong = columns(rows)

    assert apgr(np.zeros(len(weak)), weak, strong) == pytest.approx(0.5)
    assert cpt(np.zeros(len(weak)), weak, strong, 0.8) == pytest.approx(0.8)


@given(ROWS)
def test_the_reverse_order_loses_what_the_order_wins(rows):
    scores, weak, strong = columns(rows)

    assert apgr(scores, weak, strong) + apgr(-scores, weak, strong) == pytest.approx(1)


@given(ROWS)
def test_the_curve_goes_from_nothing_to_all(rows):
    shares, parts = recovered(*columns(rows))

    assert (shares[0], parts[0]) == (0, 0)
    assert (shares[-1], parts[-1]) == pytest.approx((1, 1))
    assert (np.diff(shares) > 0).all()


def test_cpt_by_hand():
    scores, weak, strong = [4, 3, 2, 1], [0, 0, 1, 1], [1, 1, 1, 1]

    assert cpt(scores, weak, strong, 0.5) == 0.25
    assert cpt(scores, weak, strong, 0.75) == 0.375
    assert apgr(scores, weak, strong) == 0.75


def test_without_a_gap_nothing_is_judged():
    with pytest.raises(EvaluationError, match="no gap"):
        apgr([1, 2], [1, 1], [1, 0])


def test_evaluate_by_source_leaves_out_what_was_trained_on():
    questions = [
        Question("hard", weak=False, strong=True, source="a"),
        Question("easy", weak=True, strong=True, source="a"),
        Question("even", weak=True, strong=True, source="b"),
        Question("seen", weak=False, strong=True, source="b"),
    ]
    found = evaluate(questions, {"hard": 0.9, "easy": 0.1, "even": 0.2}.__getitem__, lambda text: text == "seen")

    assert (found["n"], found["left_out"]) == (3, 1)
    assert found["by_source"]["a"]["apgr"] == 0.75
    assert found["by_source"]["a"]["cpt50"] == 0.25
    assert found["by_source"]["b"] == {"n": 1, "weak": 1.0, "strong": 1.0} | dict.fromkeys(
        ("apgr", "apgr_of_length", "cpt50", "cpt80", "threshold50", "threshold80")
    )


def test_when_all_was_trained_on_it_says_so():
    with pytest.raises(EvaluationError, match="all 1 rows were trained on"):
        evaluate([Question("x", weak=False, strong=True)], len, lambda _: True)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_rows_are_read(tmp_path, suffix):
    line = json.dumps({"prompt": "one\u2028text", "weak_ok": True, "strong_ok": False, "dataset": "mmlu", "subject": None})
    content = f"{line}\n\n{line}\n".encode()
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)

    assert read_questions(path) == [Question("one\u2028text", weak=True, strong=False, source="mmlu")] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "x", "weak_ok": true}', "rows.jsonl:1 is no row"),
        ("[]", "rows.jsonl:1 is no row"),
        ('{"prompt": "x", "weak_ok": 1, "strong_ok": true}', 'rows.jsonl:1: "prompt" must be'),
        ("not JSON", "rows.jsonl:1 is no row"),
        ("\n", "has no rows"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_questions(path)


def test_a_file_that_is_not_there_or_not_gzip_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "rows.gz").write_bytes(b"no gzip")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_questions(tmp_path / "rows.gz")
