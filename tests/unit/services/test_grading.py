"""One answer held against its question and its passages, by hand."""

import pytest

from rag.judgements import Question
from services.grading import Shown, grade, sentences

FEES = "A ticket can be returned free of charge up to 24 hours before departure. After that, 20 percent of the price is kept."
MEALS = "The dining car is open from 6:30 to 22:00. An ekiben, a boxed meal, costs 11 euros."
REFUND = "发车前24小时以上退票不收手续费。发车前24小时以内退票,收取票价20%的手续费。"
LUGGAGE = "每位旅客可以免费携带两个行李箱,每个不超过25公斤。"


def graded(text, *passages, question="What does an ekiben cost?", answers=("11 euros",), **fields):
    return grade(Question("q", question, answers, **fields), Shown(text, tuple(passages), ("a.md",) * len(passages)))


def test_a_right_answer_with_its_citation():
    told = graded("An ekiben costs 11 euros. [2]", FEES, MEALS)

    assert told == pytest.approx(
        {
            "exact": 0, "f1": 2 * 2 / (4 + 2), "contains": 1, "false_abstention": 0,
            "groundedness": 1, "citation_recall": 1, "citation_precision": 1,
        }
    )  # fmt: skip


def test_a_right_answer_in_chinese():
    told = graded("发车前24小时以内退票收取20%的手续费【1】。", REFUND, LUGGAGE, question="退票要收多少手续费?", answers=("20%",))

    assert (told["contains"], told["groundedness"], told["citation_precision"], told["citation_recall"]) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "precision", "recall", "grounded"),
    [
        ("An ekiben costs 11 euros [1].", 0, 1, 1),  # the wrong passage
        ("An ekiben costs 11 euros [7].", 0, 0, 1),  # a passage that is none
        ("An ekiben costs 11 euros.", None, 0, 1),
        ("An ekiben costs 15 euros [2].", 0, 1, 0),  # a claim that nothing carries
        ("An ekiben costs 11 euros [1][2].", 0.5, 1, 1),  # the other alone carries it
        ("An ekiben costs 11 euros [2]. The dining car is open from 6:30 to 22:00.", 1, 0.5, 1),
        ("An ekiben costs 11 euros [2]. The dining car is open until 23:00 [2].", 0.5, 1, 0),
        ("An ekiben costs 11 euros.\n[2]", 1, 1, 1),  # on a line of its own
    ],
)
def test_citations(text, precision, recall, grounded):
    told = graded(text, FEES, MEALS)

    assert told.get("citation_precision") == precision
    assert told["citation_recall"] == recall
    assert told["groundedness"] == grounded


@pytest.mark.parametrize(
    ("text", "abstains"),
    [
        ("The documents do not say what it costs.", True),
        ("I'm sorry. The passages do not mention prices. Please ask the service desk.", True),
        ("I don't know.", True),
        ("The text doesn't specify who made it.", True),
        ("Sorry, I don't have enough information to answer.", True),
        ("This isn't covered by the handbook.", True),
        ("The handbook says nothing about this.", True),
        ("Based on the passages, it is not possible to determine the price.", True),
        ("It is unknown.", True),
        ("手册未涉及这一内容。", True),
        ("没有找到相关内容。", True),
        ("无法确定。", True),
        ("The ekiben does not contain meat.", False),
        ("Passengers cannot leave suitcases on platform 3.", False),
        ("The origin of the unknown soldier is a battle.", False),
        ("发车后不能退票。", False),
        ("旅客不能确定座位时可以问列车员。", False),
        ("很抱歉。资料中没有提到价格。", True),
        ("An ekiben costs 11 euros. The documents do not say more.", False),
        ("文档没有说明其他费用,但20%的手续费要收。", True),
        ("It costs five coins.", False),
        ("", False),
    ],
)
def test_what_abstains(text, abstains):
    assert graded(text, MEALS, answers=(), answerable=False)["abstention"] == abstains
    assert graded(text, MEALS, answers=())["false_abstention"] == abstains


def test_an_answer_that_holds_the_reference_does_not_abstain():
    assert graded("The documents do not provide it for less than 11 euros.", MEALS)["false_abstention"] == 0


def test_an_abstention_claims_nothing():
    told = graded("The documents do not say it.", FEES, answers=(), answerable=False)

    assert told == {"abstention": 1.0}


def test_a_route_that_found_nothing_abstains_whatever_it_says():
    told = grade(Question("q", "Who?", answerable=False), Shown("Please ask the service desk.", (), nothing_found=True))

    assert told == {"abstention": 1.0}


def test_a_refusal_is_neither_an_answer_nor_an_abstention():
    told = grade(Question("q", "Who?", ("Bob",), sources=("a.md",)), Shown("", refused=True))

    assert told == {"exact": 0, "f1": 0, "contains": 0, "false_abstention": 0}


def test_a_server_that_shows_no_passages_is_not_held_against_any():
    told = grade(Question("q", "Who?", ("Bob",), sources=("a.md",)), Shown("Bob [1]"))

    assert told == {"exact": 1, "f1": 1, "contains": 1, "false_abstention": 0}


def test_documents_that_were_to_be_found():
    assert graded("x", FEES, sources=("a.md", "b.md"))["source_recall"] == 0.5


def test_sentences_and_what_they_cite():
    found = sentences("Hello! First, a ticket costs 5 euros [1, 3]. 狗要戴口套【2】。\n[4] What else?")

    assert [(one.text, one.cited) for one in found if "5" in one.text or "狗" in one.text] == [
        ("First, a ticket costs 5 euros .", (1, 3)),
        ("狗要戴口套。", (2, 4)),
    ]


@pytest.mark.parametrize(
    ("text", "grounded"), [("1999年", 1), ("2", 0), ("硫", 1), ("brimstone", 1), ("sulphur", 0), ("24所", 0)]
)
def test_a_short_answer_is_grounded_where_it_stands_word_for_word(text, grounded):
    passage = "硫在1999年产出最多,共2024所工厂。In English it was called brimstone."

    assert graded(text, passage).get("groundedness", 0) == grounded
