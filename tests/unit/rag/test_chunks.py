"""Chunks keep structure, and their ids move only with what they are made of."""

import functools
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.chunks import MAX_LINE, cut, rejoined
from rag.language import language_of
from rag.loading import read_document
from rag.section import Block, Section, table


def chunks(text, limit, kind=".md"):
    return cut(read_document(text.encode(), kind).sections, source="a", chunk_characters=limit)


def test_long_chinese_is_cut_at_sentences():
    found = chunks("列车晚点超过六十分钟可以退还一半票价。" * 20, 100)

    assert len(found) > 3
    assert all(len(c.page_content) <= 100 and c.page_content.endswith("。") for c in found)


def test_sentences_are_repeated_where_a_text_is_cut():
    found = chunks("。".join(f"第{n}" for n in range(60)) + "。", 60)

    for one, following in pairwise(found):
        assert one.page_content.rsplit("。", 2)[-2] + "。" in following.page_content


def test_a_paragraph_that_fits_is_not_cut():
    first, second = "First sentence here. Another.", "Second one. It is as long as that."

    assert [c.page_content for c in chunks(f"{first}\n\n{second}", 40)] == [first, second]


def test_code_is_cut_between_lines_only():
    lines = [f"value_{n} = compute({n}, {'x' * (n % 30)})  # why. not? because." for n in range(50)]
    found = chunks("```\n" + "\n".join(lines) + "\n```", 200)

    assert [line for c in found for line in c.page_content.split("\n")] == ["```", *lines, "```"]


def test_a_line_of_code_that_is_no_code_is_cut():
    assert max(len(c.page_content) for c in chunks("```\n" + "x" * 9000 + "\n```", 200)) == MAX_LINE


def test_a_table_repeats_its_header():
    rows = [["name", "fee"], *([f"row {n}", str(n)] for n in range(40))]
    found = cut([Section(blocks=[table(rows)])], source="a", chunk_characters=150)

    assert len(found) > 3
    assert all(c.page_content.startswith("| name | fee |\n| --- | --- |\n| row") for c in found)
    assert sum(c.page_content.count("| row") for c in found) == 40


def test_a_small_table_stays_with_what_stands_before_it():
    [only] = chunks("Fees are:\n\n| a |\n|---|\n| 1 |\n", 200)

    assert only.page_content == "Fees are:\n\n| a |\n|---|\n| 1 |"


def test_metadata():
    first, second, third = chunks("# A\n## B\nOne.\n## C\n两个。\n## B\nOne.\n", 200)

    assert [c.metadata["heading"] for c in (first, second, third)] == ["A > B", "A > C", "A > B"]
    assert [c.metadata["language"] for c in (first, second, third)] == ["en", "zh", "en"]
    assert [c.metadata["position"] for c in (first, second, third)] == [0, 1, 2]
    assert len({first.id, second.id, third.id}) == 3
    assert len({c.metadata["parent"] for c in (first, second, third)}) == 3


def test_an_edit_leaves_other_sections_alone():
    before = chunks("# A\n" + "Old text. " * 50 + "\n# B\n" + "Same. " * 50, 100)
    after = chunks("# A\nNew.\n# B\n" + "Same. " * 50, 100)

    assert {c.id for c in before if c.metadata["heading"] == "B"} == {c.id for c in after if c.metadata["heading"] == "B"}
    assert {c.id for c in before if c.metadata["heading"] == "A"}.isdisjoint({c.id for c in after})


def test_a_heading_alone_is_a_text():
    assert [(c.metadata["heading"], c.page_content) for c in chunks("# FAQ\n## Is it free? Yes.\n## B\nText\n", 100)] == [
        ("FAQ > Is it free? Yes.", "Is it free? Yes."),
        ("FAQ > B", "Text"),
    ]


@pytest.mark.parametrize(
    ("text", "language"), [("退票 is free", "en"), ("请用 iPhone 登录账户。", "zh"), ("1234 …", ""), ("", "")]
)
def test_language_by_script(text, language):
    assert language_of(text) == language


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab 。.!\n|#`，退\t-", max_size=600), st.integers(min_value=20, max_value=90))
def test_nothing_is_lost_and_nothing_is_too_long(text, limit):
    found = cut([Section(blocks=[Block("prose", text)])], source="a", chunk_characters=limit)

    assert all(0 < len(c.page_content) <= limit for c in found)
    assert len({c.id for c in found}) == len(found)
    wanted = iter("".join(c.page_content for c in found))
    assert all(character in wanted for character in "".join(text.split()))


def test_neighbours_are_put_together_again():
    assert rejoined("One. Two.", "Two. Three.") == "One. Two. Three."
    assert rejoined("一。二。", "二。三。") == "一。二。三。"
    assert rejoined("One.", "Three.") == "One.\nThree."
    assert rejoined("a cat", "table.") == "a cat\ntable."
    sentences = " ".join(f"Number {n} is here." for n in range(90))
    found = [chunk.page_content for chunk in chunks(sentences, 300)]
    assert len(found) > 5
    assert functools.reduce(rejoined, found) == sentences
