"""What is searched for, from a conversation."""

import pytest

from rag import queries

FIRST = "What does a ticket for a bicycle cost?"


@pytest.mark.parametrize(
    "last",
    [
        "And for a tandem?",
        "Can I book it?",
        "For children?",
        "What about dogs in the night train?",
        "它需要预订吗？",
        "那儿童呢？",
        "多少钱？",
    ],
)
def test_a_question_that_leans_on_the_one_before_is_searched_with_it(last):
    assert queries.joined(["How are you?", FIRST, last]) == f"{FIRST}\n{last}"


@pytest.mark.parametrize("last", ["How late may a refund be claimed?", "退票手续费最多是多少钱？"])
def test_a_question_of_its_own_is_searched_alone(last):
    assert queries.joined([FIRST, last]) == last


def test_the_first_question_is_searched_alone():
    assert queries.joined(["And it?"]) == "And it?"


def test_a_very_long_question_is_clipped():
    assert len(queries.joined(["word " * 20_000])) == queries.MAX_QUERY
    assert all(len(m["content"]) < 3000 for m in queries.rewrite_messages([("user", "x" * 100_000)]))


def test_a_models_lines_are_read_without_decoration():
    said = '1. "How much is a bicycle?"\n\n- How much is a bicycle?\n2) 自行车票多少钱？\n...\n* Price of a bike'

    assert queries.read_lines(said, 5) == ["How much is a bicycle?", "自行车票多少钱？", "Price of a bike"]
    assert queries.read_lines(said, 1) == ["How much is a bicycle?"]
    assert queries.read_lines("", 3) == []


def test_messages_hold_what_was_asked():
    told = queries.rewrite_messages([("user", FIRST), ("assistant", "11 euros."), ("user", "And it?")])[-1]["content"]

    assert told.startswith(f"user: {FIRST}\nassistant: 11 euros.\nuser: And it?")
    assert "3 other wordings" in queries.variant_messages(FIRST, 3)[0]["content"]
    assert queries.imagine_messages(FIRST)[1]["content"] == FIRST
