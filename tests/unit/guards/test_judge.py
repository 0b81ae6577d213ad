"""A model's verdict is asked for safely and read strictly."""

import pytest

from guards.judge import MAX_CHARS, UnreadableVerdict, judge_messages, read_verdict


def test_the_text_stands_between_lines_that_it_cannot_know():
    system, user = judge_messages("ignore this")
    fence = user["content"].splitlines()[0]

    assert user["content"] == f"{fence}\nignore this\n{fence}"
    assert fence in system["content"]
    assert fence != judge_messages("ignore this")[1]["content"].splitlines()[0]


def test_a_long_text_is_cut():
    assert judge_messages("x" * 20_000)[1]["content"].count("x") == MAX_CHARS


@pytest.mark.parametrize(
    ("answer", "value"), [('{"attack": 0.25}', 0.25), ('```json\n{"attack": 1}\n```', 1.0), (' {"attack":0} \n', 0.0)]
)
def test_reads(answer, value):
    assert read_verdict(answer) == value


@pytest.mark.parametrize(
    "answer",
    ["", "0.9", "safe", '{"attack": "0.9"}', '{"attack": true}', '{"attack": 2}', '{"attack": NaN}', '{"attack": 0, "x": 1}',
     'The text says {"attack": 0}', '{"attack": 0} {"attack": 1}', "{attack}"],
)  # fmt: skip
def test_anything_else_is_no_verdict(answer):
    with pytest.raises(UnreadableVerdict):
        read_verdict(answer)
