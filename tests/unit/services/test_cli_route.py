"""`ekiben route`: a score, figures by dataset, and one line for what cannot be judged."""

import json

import pytest
from typer.testing import CliRunner

from services.cli import app


@pytest.fixture
def route():
    return lambda *arguments, **more: CliRunner().invoke(app, ["route", *map(str, arguments)], **more)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    made = [
        {"prompt": "made-up " * n + "?", "weak_ok": n % 3 > 0, "strong_ok": True, "dataset": "even" if n % 2 else "odd"}
        for n in range(1, 40)
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    return path


def test_eval_prints_the_figures_by_dataset(route, rows):
    done = route("eval", rows, "--json")
    found = json.loads(done.stdout)

    assert done.exit_code == 0
    assert (found["n"], found["left_out"]) == (39, 0)
    assert set(found["by_source"]) == {"even", "odd"}
    assert {"n", "apgr", "apgr_of_length", "cpt50", "cpt80"} <= set(found["by_source"]["odd"])
    assert 0 < found["all"]["cpt50"] <= found["all"]["cpt80"] <= 1
    assert "of length" in route("eval", rows).stdout


def test_what_cannot_be_judged_is_one_line(route, tmp_path):
    done = route("eval", tmp_path / "none.jsonl")

    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.output


def test_weights_that_are_none_are_one_line(route, rows):
    done = route("eval", rows, "--weights", rows)

    assert done.exit_code == 1
    assert "holds no usable weights" in done.stderr


def test_score_of_a_text_and_of_standard_input(route):
    text = "Which of two contracts binds the heirs?"
    score = json.loads(route("score", text, "--json").stdout)["score"]

    assert 0 <= score <= 1
    assert json.loads(route("score", "-", "--json", input=text).stdout)["score"] == score
    assert float(route("score", text).stdout) == score


def test_help_says_what_the_figures_mean(route):
    assert "0.5 at random" in " ".join(route("eval", "--help").stdout.split())
    assert "thresholds" in route("score", "--help").stdout
