"""Passages as the prompt and the sources see them."""

from rag.context import Context, Passage, merged
from rag.lexical import tokens

REFUNDS = Passage("A ticket can be returned free of charge.", "tickets.md", 0, "Tickets > Refunds", 0.9)
PETS = Passage("小动物可以免费乘车。", "宠物.md", 2, "", 0.5)
CONTEXT = Context((REFUNDS, PETS))


def test_numbers_and_sources():
    assert CONTEXT.text.startswith("[1] Tickets > Refunds: A ticket")
    assert [(s["number"], s["source"], s["page"]) for s in CONTEXT.sources()] == [(1, "tickets.md", None), (2, "宠物.md", 2)]
    assert Context(()).text == "(none)"


def test_an_answer_without_citations_gets_the_passage_that_supports_it():
    assert CONTEXT.cite("Tickets can be returned free of charge.") == " [1]"
    assert CONTEXT.cite("小动物免费乘车") == " [2]"


def test_an_answer_that_cites_or_that_nothing_supports_gets_none():
    assert CONTEXT.cite("Free of charge [1].") == ""
    assert CONTEXT.cite("The moon is made of green cheese.") == ""
    assert CONTEXT.cite("") == ""
    assert Context(()).cite("anything") == ""


def test_a_citation_of_nothing_is_no_citation():
    assert CONTEXT.cite("Tickets can be returned free of charge [7].") == " [1]"


def test_terms_of_both_languages():
    assert tokens("Returned tickets") == ["return", "ticket"]
    assert tokens("退票") == ["退", "票", "退票"]
    assert tokens("…!?") == []


def test_the_best_of_several_searches_each_once():
    better = Passage(PETS.text, PETS.source, PETS.page, PETS.heading, 0.95)

    assert merged([[REFUNDS, PETS], [better]]) == [better, REFUNDS]
    assert merged([[REFUNDS], [PETS]]) == [REFUNDS]
    assert merged([[PETS, REFUNDS]]) == [PETS, REFUNDS]
    assert merged([]) == []
