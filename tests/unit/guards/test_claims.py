"""A claim must stand in its passage."""

import pytest

from guards.claims import check, judge_messages, read_judgement

PASSAGES = [
    "Museum. The museum is open from 9:00 to 17:30. Tickets cost 8 euros and are free for children under 12. "
    "Photography is not allowed in the Rembrandt room. The house was built by Anna Keller in 1887.",
    "图书馆周一闭馆。每位读者可以免费借阅十本书,借期为三十天。逾期每天收取5元。阅览室不可以饮食。馆内藏有《红楼梦》的手稿。",
]


@pytest.mark.parametrize(
    "answer",
    [
        "Tickets cost eight euros [1].",
        "The museum is open from 9 am to 5:30 pm [1].",
        "The house was built in 1887 by Anna Keller.",
        "Photography isn't allowed in the Rembrandt room [1].",
        "每位读者可以免费借阅10本书,借期为30天[2]。",
        "阅览室不可以饮食[2]。",
        "The documents do not say this.",
        "文档中没有相关信息。",
        "Would you like to know more?",
    ],
)
def test_what_the_passages_say_is_supported(answer):
    assert check(answer, PASSAGES).unsupported == ()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Tickets cost 9 euros [1].", "number"),
        ("Tickets cost 8 dollars [1].", "number"),
        ("The house was built by Anna Muller in 1887.", "name"),
        ("Photography is allowed in the Rembrandt room [1].", "contradiction"),
        ("Tickets cost 8 euros [7].", "citation"),
        ("每位读者可以免费借阅12本书[2]。", "number"),
        ("阅览室可以饮食[2]。", "contradiction"),
        ("馆内藏有《西游记》的手稿[2]。", "quote"),
        ("Penguins breed on rocky coasts in winter.", "content"),
    ],
)
def test_what_they_do_not_say_is_found(answer, reason):
    result = check(answer, PASSAGES)

    assert [claim.reason for claim in result.unsupported] == [reason]
    assert result.score < 0.5


def test_a_citation_of_the_wrong_passage_is_found_only_where_citations_count():
    passages = [PASSAGES[0], "Trains leave every hour. A platform ticket costs 2 euros."]
    answer = "Photography is not allowed in the Rembrandt room [2]."

    assert [c.reason for c in check(answer, passages).unsupported] == ["citation"]
    assert check(answer, passages, cited=False).unsupported == ()


def test_spans_are_those_of_the_original():
    answer = "Tickets cost\u200b 9 euros [1]. The museum is open from 9:00."
    (claim,) = check(answer, PASSAGES).unsupported

    assert answer[claim.start : claim.end] == "Tickets cost\u200b 9 euros [1]."
    assert answer[claim.detail[0] : claim.detail[1]] == "9 euros"


def test_an_answer_without_claims_or_passages():
    assert check("", PASSAGES).score == 1
    assert [c.reason for c in check("Tickets cost 8 euros.", []).unsupported] == ["content"]


def test_the_judge_is_asked_with_data_and_read_strictly():
    assert '"answer": "a"' in judge_messages("a", ["p"])[1]["content"]
    assert read_judgement('```json\n{"supported": false, "unsupported": ["x"]}\n```').unsupported == ("x",)
    for wrong in ("yes", "[]", '{"supported": 1, "unsupported": []}', '{"supported": true}'):
        with pytest.raises(ValueError, match="judge"):
            read_judgement(wrong)
