"""Training text of our own: sentences from a grammar, and texts put together from them and from training rows.

What public corpora lack is made here: harmless documents, harmless texts that use an attack's words, attacks hidden in
documents, and Chinese attacks of each known category. Used for training only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

Language = Literal["en", "zh"]
_SLOT = re.compile(r'\{([^{}"\\\n]+?)\}')
_EXCERPT = 400  # characters of a training row in a mixed text

# How many texts of each kind: enough for a few hundred of each form, no more than the rows of the corpora.
_ATTACKS, _HARMLESS, _PLANTED, _MIXED, _HIJACKED = 1500, 2200, 300, 600, {"en": 400, "zh": 600}


@dataclass(frozen=True)
class Made:
    """A text and its label: 1 an attack, 0 harmless."""

    text: str
    label: int


class Grammar:
    """Names with their alternatives, each a string in which `{name}` stands for an alternative of that name."""

    def __init__(self, rules: Mapping[str, Sequence[str]]) -> None:
        self._rules = rules

    @classmethod
    def read(cls, path: Path) -> Grammar:
        """Read a grammar from YAML."""
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")))

    def unknown(self) -> set[str]:
        """Return the names in slots that have no alternatives; they are left as they stand, as code has braces too."""
        slots = {name for texts in self._rules.values() for text in texts for name in _SLOT.findall(str(text))}
        return slots - set(self._rules)

    def make(self, name: str, chance: random.Random) -> str:
        """Return a random text of a name."""
        text = str(chance.choice(self._rules[name]))
        return _SLOT.sub(lambda slot: self.make(slot[1], chance) if slot[1] in self._rules else slot[0], text)


def synthesize(grammar: Grammar, harmless: Mapping[Language, Sequence[str]], seed: int = 5) -> list[Made]:
    """Return texts made by the grammar, and mixtures with harmless training rows; the same for the same arguments."""
    chance = random.Random(seed)  # noqa: S311  training data, nothing secret
    unique = {made.text: made for made in _generate(grammar, harmless, chance)}
    return list(unique.values())


def _generate(grammar: Grammar, harmless: Mapping[Language, Sequence[str]], chance: random.Random) -> Iterator[Made]:
    for language in ("en", "zh"):
        for _ in range(_ATTACKS):
            yield Made(grammar.make(f"attack_{language}", chance), 1)
        for _ in range(_HARMLESS):
            yield Made(grammar.make(f"benign_{language}", chance), 0)
    for _ in range(_PLANTED):
        document = grammar.make(chance.choice(["mail", "mail", "table", "paragraph"]), chance)
        yield Made(_planted(document, grammar.make("planted_more", chance), chance), 1)
    for language in ("en", "zh"):
        rows = harmless[language]
        hijack = "hijack_en" if language == "en" else "劫持"
        for _ in range(_MIXED):  # long and harmless, so that length alone says nothing
            several = chance.sample(rows, min(len(rows), chance.choice([2, 3, 4, 6])))
            yield Made(chance.choice(["\n", " ", "\n\n"]).join(text[:_EXCERPT] for text in several), 0)
        for _ in range(_HIJACKED[language]):
            between = chance.choice(["", "\n"] if language == "zh" else [" ", "\n"])
            yield Made(chance.choice(rows)[:_EXCERPT] + between + grammar.make(hijack, chance).split("。", 1)[-1], 1)


def _planted(document: str, order: str, chance: random.Random) -> str:
    separator = "\n" if "\n" in document.strip() else ". "
    parts = document.split(separator)
    parts.insert(chance.randrange(len(parts) + 1), order)
    return separator.join(parts)
