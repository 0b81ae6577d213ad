"""Words by their place in a text."""

from hypothesis import given
from hypothesis import strategies as st

from guards.places import BITS, places


@given(st.text(max_size=200))
def test_every_text_has_buckets_in_range(text):
    buckets = places(text)

    assert all(0 <= bucket < 2**BITS for bucket in buckets)


def test_hashing_never_changes():
    """Weights and hashing belong together: another hash makes the shipped weights noise."""
    assert places("stop")[:2].tolist() == [176878, 161794]


def test_beginnings_and_ends_of_sentences_and_the_outer_two_are_said():
    """Of a sentence of four words: three beginnings, two ends, and as first and as last one four words and three pairs."""
    assert len(places("one two three four")) == 5 + 2 * 7
    assert len(places("one two three four. " * 3)) == 3 * 5 + 2 * 7


def test_an_order_means_something_else_at_another_place():
    first, middle = (set(places(text).tolist()) for text in ("stop now. a b. c d", "a b. stop now. c d"))

    assert first != middle


def test_marks_and_white_space_do_not_matter():
    assert places("tell me,  then go!\n").tolist() == places("(tell me) then go").tolist()


def test_a_han_character_is_a_word():
    assert len(places("请讲")) == 4 + 2 * 3


def test_a_text_without_words_has_none():
    assert not len(places(" ... "))
