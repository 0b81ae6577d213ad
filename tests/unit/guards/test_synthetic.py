"""Training text of our own: complete, the same every time, and labelled."""

import random
from pathlib import Path

from guards.synthetic import Grammar, synthesize

SHIPPED = Path(__file__).parents[3] / "guards" / "classifier" / "grammar.yaml"
HARMLESS = {"en": ["How are you?", "What is a lake?", "Sing a song."], "zh": ["你好吗?", "湖是什么?", "唱首歌。"]}


def test_slots_are_filled_and_braces_of_code_stay():
    grammar = Grammar({"a": ["{b}{b} f'{{x}}'"], "b": ["yes"]})

    assert grammar.make("a", random.Random(0)) == "yesyes f'{{x}}'"
    assert grammar.unknown() == {"x"}


def test_the_shipped_grammar_has_no_open_ends():
    assert Grammar.read(SHIPPED).unknown() == set()


def test_the_same_seed_makes_the_same_texts():
    grammar = Grammar.read(SHIPPED)
    first, second = synthesize(grammar, HARMLESS, 1), synthesize(grammar, HARMLESS, 1)

    assert first == second
    assert len({made.text for made in first}) == len(first)
    assert {made.label for made in first} == {0, 1}
