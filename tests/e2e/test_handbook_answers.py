"""The demo's handbook asked by `ekiben rag answers`, with real vLLM: figures that a change must not lower."""

import json
from pathlib import Path

import pytest

QUESTIONS = Path(__file__).parent / "data" / "handbook.jsonl"


@pytest.fixture(scope="module")
def told(box, ekiben, tmp_path_factory):
    save = tmp_path_factory.mktemp("answers") / "handbook.jsonl"
    arguments = ("--url", f"{box.url}/v1", "--model", "handbook", "--questions", str(QUESTIONS), "--save", str(save))
    return json.loads(ekiben("rag", "answers", *arguments, "--json"))


def mean(told, figure, language=None):
    return (told["by_language"][language] if language else told)[figure]["mean"]


def test_every_question_is_answered_in_both_languages(told):
    assert (told["questions"], told["refused"], told["excerpts_only"], told["failed"]) == (20, 0, 0, {})
    assert {language: of["questions"] for language, of in told["by_language"].items()} == {"en": 15, "zh": 5}


def test_the_documents_that_answer_are_found(told):
    assert mean(told, "source_recall") >= 0.93
    assert mean(told, "source_recall", "zh") == 1


def test_the_route_abstains_where_nothing_answers_and_hardly_elsewhere(told):
    """The fifth of the questions that nothing answers is about a lounge that the handbook nearly has."""
    assert mean(told, "abstention") >= 0.8
    assert mean(told, "false_abstention") <= 0.14


def test_answers_hold_what_they_should_and_rest_on_their_passages(told):
    assert mean(told, "contains") >= 0.5
    assert mean(told, "groundedness") >= 0.5
