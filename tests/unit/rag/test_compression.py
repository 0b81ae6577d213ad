"""Passages keep the sentences that say most about the question."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.compression import GAP, compressed

LONG = "The line was opened in 1910. Trains run twice an hour. A bicycle costs twelve euros a day. Dogs travel free. Tea is sold."


def test_the_sentence_that_answers_stays_word_for_word():
    [short] = compressed([LONG], "What does a bicycle cost?", 0.3)

    assert "A bicycle costs twelve euros a day." in short
    assert len(short) < 0.7 * len(LONG)


def test_chinese():
    [short] = compressed(["列车每小时两班。自行车每天十二欧元。狗可以免费乘车。站台上出售热茶。"], "自行车多少钱？", 0.3)

    assert "自行车每天十二欧元。" in short
    assert "热茶" not in short


def test_what_is_left_out_in_between_is_marked():
    [short] = compressed([LONG], "When was the line opened, and do dogs travel free?", 0.4)

    assert short.startswith("The line was opened in 1910.")
    assert short.endswith(GAP + "Dogs travel free.")


def test_a_passage_without_a_word_of_the_question_makes_room_for_those_that_have_some():
    shown = compressed([LONG, "Nothing of the kind is said here. Or there."], "What does a bicycle cost?", 0.25)

    assert "bicycle" in shown[0]
    assert shown[1] == ""


def test_all_of_it():
    assert compressed([LONG], "bicycle", 1) == [LONG]


@given(
    st.lists(st.text(alphabet="ab .!。？\n中文", max_size=60), max_size=4),
    st.text(alphabet="ab中", max_size=8),
    st.floats(0.05, 1),
)
def test_nothing_is_invented_and_something_stays(passages, question, share):
    shown = compressed(passages, question, share)

    assert len(shown) == len(passages)
    for before, after in zip(passages, shown, strict=True):
        assert all(part.strip() in before for part in after.split(GAP))
    assert any(shown) or not any(passage.strip() for passage in passages)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_about_the_share_that_was_asked_for_stays(share):
    text = " ".join(f"Sentence number {number} stands here." for number in range(100))

    assert len(compressed([text], "number 7", share)[0]) == pytest.approx(share * len(text), rel=0.25)
