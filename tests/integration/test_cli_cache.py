"""`ekiben cache` with the real embedding model on a few pairs."""

import json

import pytest
from typer.testing import CliRunner

from services.cli import app

PAIRS = [
    ("How do I return a ticket?", "How can I return my ticket?", 1),
    ("Where is the lost property office?", "Where can I find the lost property office?", 1),
    ("When does the last tram leave?", "Who drives the last tram?", 0),
    ("Is there a train at 9:15?", "Is there a train at 10:45?", 0),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("EKIBEN_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments):
        return CliRunner().invoke(app, ["cache", *map(str, arguments)])

    return run


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"a": a, "b": b, "label": label}) + "\n" for a, b, label in PAIRS))
    return path


def test_eval_tells_pairs_and_look_ups_as_json_and_as_a_table(run, pairs):
    result = run("eval", pairs, "--workers", 1, "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["count"], told["same"]) == (4, 2)
    assert told["pairs"]["auc"] == 1.0
    by_likelihood = told["pairs"]["by_likelihood"]
    assert (by_likelihood["0.3"]["hits"], by_likelihood["0.3"]["wrong"]) == (3, 1), "the other time of day is never a hit"
    assert by_likelihood["0.8"]["wrong"] == 0
    assert "lookups" in told
    table = run("eval", pairs, "--workers", 1)
    assert "precision" in table.stdout
    assert "AUC" in table.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x"}\n', "pairs.jsonl:1"),
        ("", "no pairs"),
        (json.dumps({"a": "x", "b": "y", "label": 1}) + "\n{\n", "pairs.jsonl:2"),
    ],
)
def test_a_bad_file_ends_with_one_line_that_names_the_place(run, pairs, content, message):
    pairs.write_text(content)

    result = run("eval", pairs)

    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_calibration_ends_with_one_line(run, pairs, tmp_path):
    (tmp_path / "c.yaml").write_text("embedder: another\nweights: {}\nbias: 0\nthresholds: {}\n")

    result = run("eval", pairs, "--calibration", tmp_path / "c.yaml")

    assert result.exit_code == 1
    assert "another" in result.stderr


def test_training_without_pairs_that_differ_is_refused(run, pairs):
    pairs.write_text("".join(json.dumps({"a": a, "b": b, "label": 1}) + "\n" for a, b, _ in PAIRS[:2]))

    result = run("train", pairs, "--workers", 1)

    assert result.exit_code == 1
    assert "both labels" in result.stderr
