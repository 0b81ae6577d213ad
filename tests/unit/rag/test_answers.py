"""Figures of answers, by hand."""

import pytest

from rag.answers import FIGURES, Bound, Row, against, answer_tokens, differences, summary


@pytest.mark.parametrize(
    ("text", "language", "tokens"),
    [
        ("The U.S.  army's an-swer: A $1,000!", "en", ["us", "armys", "answer", "1000"]),
        ("票价的20%，约１２.５欧元。", "zh", [*"票价的", "20", "约", "125", *"欧元"]),
        ("Vitamin A 是什么?", "zh", ["vitamin", "a", *"是什么"]),
        ("A组 and 東京タワー", "en", ["a", "组", "and", *"東京タワ", "ー"]),
        ("the a an", "en", []),
    ],
)
def test_what_is_compared(text, language, tokens):
    assert answer_tokens(text, language) == tokens


@pytest.mark.parametrize(
    ("answer", "references", "language", "exact", "f1", "contains"),
    [
        ("the Eiffel Tower.", ["Eiffel tower"], "en", 1, 1, 1),
        # 2 of 5 words of the answer and 2 of 2 of the reference: 2 * 0.4 * 1 / 1.4
        ("It is the Eiffel Tower, surely", ["London", "Eiffel Tower"], "en", 0, 4 / 7, 1),
        # the words are there, not side by side: 2 of 3 and 2 of 2
        ("tower of Eiffel", ["Eiffel tower"], "en", 0, 4 / 5, 0),
        ("It costs 15 euros", ["5"], "en", 0, 0, 0),
        ("The the", ["a"], "en", 1, 1, 1),
        ("", ["Paris"], "en", 0, 0, 0),
        # 退 and 票 twice in the answer, once in the reference: 4 common of 6 and 4
        ("退票，退票收费", ["退票收费"], "zh", 0, 8 / 10, 1),
        ("收取 20 % 的手续费", ["20%", "二成"], "zh", 0, 2 / 8, 1),
        ("２０％。", ["20%"], "zh", 1, 1, 1),
    ],
)
def test_against_references(answer, references, language, exact, f1, contains):
    assert against(answer, references, language) == pytest.approx({"exact": exact, "f1": f1, "contains": contains})


def row(name, language="en", latency=10.0, **figures):
    return Row(name, language, figures, latency, 100, 20, versions={"model": "m:1"})


def test_a_summary_by_language():
    told = summary(
        [row("1", exact=1.0), row("2", exact=0.0, latency=30), row("3", "zh", exact=1.0), row("4", "zh", abstention=1.0)]
    )

    assert (told["exact"]["n"], told["exact"]["mean"]) == (3, pytest.approx(2 / 3))
    assert (told["exact"]["low"], told["exact"]["high"]) == (0, 1)
    assert told["by_language"]["en"]["exact"]["mean"] == 0.5
    assert told["by_language"]["zh"] == {
        "questions": 2,
        "exact": {"n": 1, "mean": 1, "low": 1, "high": 1},
        "abstention": {"n": 1, "mean": 1, "low": 1, "high": 1},
    }
    assert "f1" not in told
    assert told["tokens"] == {"prompt": {"total": 400, "mean": 100}, "completion": {"total": 80, "mean": 20}}
    assert told["latency_ms"]["p50"] == 10
    assert told["latency_ms"]["max"] == 30
    assert told["versions"] == {"model": ["m:1"]}


def test_an_interval_covers_what_was_drawn():
    """Of 400 answers of which 300 are right, the interval is 0.75 -+ 1.96 * sqrt(0.75 * 0.25 / 400)."""
    told = summary([row(str(number), exact=float(number % 4 > 0)) for number in range(400)])["exact"]

    assert told["low"] == pytest.approx(0.75 - 0.0424, abs=0.005)
    assert told["high"] == pytest.approx(0.75 + 0.0424, abs=0.005)


def test_no_rows_have_no_figures():
    told = summary([])

    assert (told["questions"], told["latency_ms"], told["by_language"]) == (0, {}, {})
    assert not set(told) & set(FIGURES)


def test_runs_are_compared_by_the_questions_that_they_share():
    now = [row("1", f1=0.5), row("2", f1=1.0), row("3", f1=1.0), row("4", exact=1.0)]
    before = [row("2", f1=0.5), row("1", f1=0.5), row("4", f1=0.0), row("5", f1=0.0)]
    told = differences(now, before)

    assert list(told) == ["f1"]
    assert (told["f1"]["n"], told["f1"]["mean"]) == (2, 0.25)


@pytest.mark.parametrize(
    ("text", "most", "missed"),
    [
        ("exact=0.5", False, None),
        ("exact=0.51", False, "exact 0.500 is under 0.51"),
        ("zh.exact=0.1", False, "zh.exact 0.000 is under 0.1"),
        ("exact=0.5", True, None),
        ("exact=0.4", True, "exact 0.500 is over 0.4"),
        ("f1=0.1", False, "f1 was not measured: no question or answer that it applies to"),
        ("other.f1=0.1", True, "other.f1 was not measured: no question or answer that it applies to"),
    ],
)
def test_bounds(text, most, missed):
    told = summary([row("1", exact=1.0), row("2", "zh", exact=0.0)])

    assert Bound.parse(text, most=most).missed(told) == missed


@pytest.mark.parametrize("text", ["exact", "exact=x", "exact=1.5", "exact=nan", "speed=0.5", "fr.exact=0.5", ".exact=0.5"])
def test_bounds_that_are_none(text):
    with pytest.raises(ValueError, match="is not FIGURE=NUMBER"):
        Bound.parse(text, most=False)
