"""What two questions have in common and where they part, in English and Chinese: the features of a judgement.

Two questions with nearly the same vector may ask different things: of another city, year or person, the opposite, or when
in the place of why. Vectors hardly see that; words do.
"""

# ruff: noqa: E501, SIM905  word lists are read whole

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Test = Callable[[str, str], bool]
"""Of two questions, whether something is so; the same whichever comes first."""

FEATURES = (
    "cosine", "shared", "contained", "trigrams", "order", "swapped", "added", "lonely", "names", "named", "numbers", "asked",
    "opposed", "ending", "length",
)  # fmt: skip
"""cosine: of the vectors. shared: the content terms of both over those of either (Jaccard), by weight. contained: over those of the
shorter. trigrams: Dice's coefficient of character trigrams. order: how alike the sequences of all words are. swapped: weight of
content terms that the question with fewer of its own has alone; added: by how much more the other has. lonely: 1 where both have
some alone. names: names (capitals inside a sentence, Latin words in Chinese) of only one question, the lesser count; named: the
greater. Names in Chinese characters are not told from other words: two characters or more of each side that the other has not
are a name of each. numbers: 1 where the quantities are not the same. asked: 1 where they ask for different things (who, when, how many).
opposed: 1 where one denies what the other says. ending: 1 where the last content terms differ. length: the logarithm of the ratio
of the numbers of words."""

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_PIECE = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:['’][^\W\d_]+)?")
_IS_CJK = re.compile(rf"[{_CJK}]")
_LATIN = r"[A-Za-z0-9\u00c0-\u024f]"
_NAME = re.compile(rf"(?<!['’])(?<!{_LATIN})(?:[A-Z]|[a-z]+[A-Z]){_LATIN}*")
_LATIN_WORD = re.compile(rf"(?<!{_LATIN})[A-Za-z]{_LATIN}*")
_STOP = frozenset(
    "a an the of to in on at by for with from as is are was were be been being am do does did done have has had having it its this "
    "that these those there here i you he she we they me my your his her our their them us him and or but if so then than also into "
    "about which who whom whose what when where while why how can could may might will would shall should must any some much many "
    "more most such very just really actually please tell explain ever get got s t m re ve ll d".split()
)
_WEAK = frozenset(
    "best good great way ways thing things make made use used using work works people know like want need one take find help most top better".split()
)
_STARTS = frozenset(("", ".", "?", "!", ":"))
"""What a sentence begins behind, where a capital says nothing."""
_ZH_STOP = frozenset(
    "的了在是和与及或也都就而且被把对于从到以为之其这那有个们着过吗呢吧啊请您你我他她它会可什么怎样何谁哪几多少如"
)
_WEAK_WEIGHT = 0.4
_LONG, _LONG_WEIGHT = 4, 1.2
_SHORT = 2
_ZH_NAME = 2
_ZH_NUMERALS = frozenset("零〇一二两三四五六七八九十百千万亿半")
_ASKED = (
    ("person", r"\b(?:who|whom|whose)\b|谁|哪位|何人"),
    ("time", r"\bwhen\b|\bwhat (?:time|date|year|day)\b|什么时候|何时|几点|哪[年天]|哪一[年天]"),
    ("place", r"\bwhere\b|哪里|哪儿|何处|在哪|什么地方"),
    ("reason", r"\bwhy\b|\bhow come\b|\bwhat (?:causes?|caused|(?:is|are) the (?:reason|cause)s?)\b|为什么|为何|为啥|什么原因|怎么会"),
    ("amount", r"\bhow (?:many|much|long|old|far|often|tall|big|large|high|deep|fast|heavy)\b|多少|多久|多长|多大|多远|多高|几[个次天岁]"),
    ("manner", r"\bhow (?:do|does|did|can|could|should|would|to|is|are|was|were|will)\b|怎么|怎样|如何"),
    ("difference", r"\bdifferences?\b|\bdiffer\b|\bversus\b|\bvs\b|\bcompared?\b|区别|差别|不同|比较"),
    ("choice", r"\bwhich\b|哪[个种些款]"),
)  # fmt: skip
_KINDS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _ASKED)


@dataclass(frozen=True)
class Facts:
    """Tests that come from elsewhere: whether two questions' quantities differ, and whether one denies what the other says."""

    differ_in_numbers: Test
    oppose: Test


def measure(one: str, other: str, cosine: float, facts: Facts) -> tuple[float, ...]:
    """Return FEATURES of two questions and the cosine of their vectors; the same whichever comes first."""
    a, b = _read(one), _read(other)
    both, left, right = a.content & b.content, a.content - b.content, b.content - a.content
    common, alone, beside = _weight(both), _weight(left), _weight(right)
    fewer, more = sorted((alone, beside))
    lesser, greater = sorted((a.unknown_to(b), b.unknown_to(a)))
    if min(len(a.characters - b.characters), len(b.characters - a.characters)) >= _ZH_NAME:
        lesser, greater = lesser + 1, greater + 1
    return (
        cosine,
        common / (common + alone + beside or 1.0),
        common / (common + fewer or 1.0),
        2 * len(a.trigrams & b.trigrams) / (len(a.trigrams) + len(b.trigrams) or 1),
        _alike(a.sequence, b.sequence),
        math.log1p(fewer),
        math.log1p(more - fewer),
        float(bool(left and right)),
        math.log1p(lesser),
        math.log1p(greater),
        float(facts.differ_in_numbers(a.text, b.text)),
        float(a.asked != b.asked),
        float(facts.oppose(a.text, b.text)),
        float(a.last != b.last),
        abs(math.log((len(a.sequence) or 1) / (len(b.sequence) or 1))),
    )


@dataclass(frozen=True)
class _Reading:
    text: str
    sequence: tuple[str, ...]
    words: frozenset[str]
    content: frozenset[str]
    last: str
    trigrams: frozenset[str]
    names: frozenset[str]
    characters: frozenset[str]
    squeezed: str
    asked: frozenset[str]

    def unknown_to(self, other: _Reading) -> int:
        """Count the names that the other has in no spelling: YouTube is You Tube."""
        return sum(name not in other.words and (len(name) <= _SHORT or name not in other.squeezed) for name in self.names)


@functools.cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


@functools.lru_cache(maxsize=8192)
def _read(question: str) -> _Reading:
    text = unicodedata.normalize("NFKC", question).replace("’", "'").strip()
    stem = _stemmer().stemWord
    sequence: list[str] = []
    content: list[str] = []
    for piece in _PIECE.findall(text):
        if _IS_CJK.match(piece):
            sequence += piece
            pairs = list(map(operator.add, piece, piece[1:])) or [piece]
            content += [pair for pair in pairs if not all(char in _ZH_STOP for char in pair)]
        else:
            word = piece.lower()
            sequence.append(stem(word.removesuffix("'s")))
            if word not in _STOP and word.removesuffix("n't") not in _STOP:
                content.append(_WEAK_MARK + word if word in _WEAK else sequence[-1])
    spaced = f" {' '.join(sequence)} "
    chinese = bool(_IS_CJK.search(text))
    names = frozenset(
        stem(found[0].lower())
        for found in (_LATIN_WORD if chinese else _NAME).finditer(text)
        if found[0].lower() not in _STOP and (chinese or text[: found.start()].rstrip()[-1:] not in _STARTS)
    )
    return _Reading(
        text,
        tuple(sequence),
        frozenset(sequence),
        frozenset(content),
        next((term for term in reversed(content) if not term.startswith(_WEAK_MARK)), ""),
        frozenset(map("".join, zip(spaced, spaced[1:], spaced[2:], strict=False))),
        names,
        frozenset(piece for piece in sequence if _IS_CJK.match(piece)) - _ZH_STOP - _ZH_NUMERALS,
        "".join(sequence),
        frozenset(name for name, pattern in _KINDS if pattern.search(text)),
    )


_WEAK_MARK = "\x00"


def _weight(terms: frozenset[str]) -> float:
    return sum(_WEAK_WEIGHT if term[0] == _WEAK_MARK else _LONG_WEIGHT if len(term) > _LONG else 1.0 for term in terms)


def _alike(one: Sequence[str], other: Sequence[str]) -> float:
    first, second = sorted((tuple(one), tuple(other)))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
