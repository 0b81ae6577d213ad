"""Phrases are found whole and split, and never shown in part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.moderation import Moderation, Phrase, WordlistError, judge_messages, read_verdict, read_wordlist

LISTS = Moderation([Phrase("test", "bad word"), Phrase("test", "坏话连篇"), Phrase("other", "zonk")])


@pytest.mark.parametrize(
    "text", ["a bad word here", "BAD WORD", "b a d word", "b*a*d-word", "ｂａｄ word", "说坏*话连 篇了", "坏\u200b话连篇", "zonk"]
)
def test_phrases_are_found(text):
    (hit,) = LISTS.find(text)

    assert hit.category in {"test", "other"}
    assert LISTS.find(text[hit.start : hit.end])


@pytest.mark.parametrize("text", ["a bad wording", "zonked", "坏话。连篇", "bad, good word", "nothing"])
def test_parts_of_words_and_sentences_are_not(text):
    assert LISTS.find(text) == []


@given(st.sampled_from(["bad word", "坏话连篇", "zonk", "b.a.d word"]), st.sampled_from(["", "so ", "好"]), st.integers(1, 4))
def test_no_part_of_a_phrase_is_shown(phrase, before, size):
    text, shown = before + phrase, 0
    for end in range(size, len(text) + size, size):
        seen = text[:end]
        shown = max(shown, len(seen) - LISTS.hold(seen))

    assert shown <= len(before)
    assert len(phrase) <= LISTS.longest


def test_lists_are_read_and_wrong_ones_named(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# comment\nfoo bar\ncategory: rude\n坏话\n", encoding="utf-8")
    assert read_wordlist(path) == [Phrase("list", "foo bar"), Phrase("rude", "坏话")]

    path.write_text("x\n", encoding="utf-8")
    with pytest.raises(WordlistError, match=r"list\.txt:1"):
        read_wordlist(path)
    with pytest.raises(WordlistError, match="cannot be read"):
        read_wordlist(tmp_path / "none.txt")


def test_the_default_lists_load_and_do_not_find_plain_text():
    assert Moderation.of().find("The dining car is open. 列车晚点可以退票。 Kill the process 12 yourself.") == []


def test_the_judge_names_a_category_or_none():
    assert '"text": "t"' in judge_messages("t", ["a"])[1]["content"]
    assert read_verdict('{"category": "a"}', ["a"]) == "a"
    assert read_verdict('{"category": null}', ["a"]) is None
    for wrong in ("no", '{"category": "b"}', "[]"):
        with pytest.raises(ValueError, match="judge"):
            read_verdict(wrong, ["a"])
