"""Concepts: words of one meaning in English and Chinese, and which of them stand together in a text.

Corpora of attacks are small and each has its own words. A lexicon maps "disregard" and 忽略 to one meaning, so that what was
learnt of one phrasing holds for others. Pairs have buckets of their own; only triples are hashed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

BITS = 18
_MOST = 124  # meanings that fit in seven bits beside the marks
_SHIPPED = Path(__file__).parent / "classifier" / "concepts.yaml"
_HAN = re.compile(r"[\u3400-\u9fff]")
_MARKS = '?!:\n"'
_PAIR, _TRIPLES, _TRIPLE_BITS = 2**14, 2**17, 17
_SINGLES = 4 * _PAIR
_LENGTHS, _LONGEST = _SINGLES + 128, 12


class Lexicon:
    """Meanings with their words; raises ValueError where there are too many meanings."""

    def __init__(self, meanings: Mapping[str, str]) -> None:
        if len(meanings) > _MOST:
            msg = f"{len(meanings)} meanings, at most {_MOST} fit"
            raise ValueError(msg)
        self._numbers = {mark: len(meanings) + at for at, mark in enumerate(_MARKS)}
        words = [(word, number) for number, text in enumerate(meanings.values()) for word in text.split()]
        for word, number in words:
            self._numbers.setdefault(word, number)
        for word, number in words:
            for form in _inflected(word):
                self._numbers.setdefault(form, number)
        han = sorted({word for word, _ in words if _HAN.match(word)}, key=lambda word: (-len(word), word))
        self._token = re.compile("|".join([r"[a-z0-9'\u00df-]+", r'[?!:\n"]', *_by_first_character(han)]))

    @classmethod
    def read(cls, path: Path = _SHIPPED) -> Lexicon:
        """Read a lexicon from YAML."""
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")))

    def sequence(self, text: str) -> list[int]:
        """Return the meanings found in a folded text, in order."""
        numbers = self._numbers
        return [numbers[token] for token in self._token.findall(text) if token in numbers]

    def grams(self, text: str) -> NDArray[np.int64]:
        """Return the bucket, below 2^18, of every meaning, of neighbours, of all pairs in the text, and of its length."""
        found = np.array(self.sequence(text), dtype=np.int64)
        grams = [np.array([_LENGTHS + min(_LONGEST, len(text).bit_length())]), _SINGLES + found]
        grams += [_PAIR * (apart - 1) + 128 * found[:-apart] + found[apart:] for apart in (1, 2, 3)]
        triples = (found[:-2] * 128 + found[1:-1]) * 128 + found[2:]
        grams.append(_TRIPLES + ((triples * 0x9E3779B1) >> 10) % 2**_TRIPLE_BITS)
        distinct = np.unique(found)
        first, second = np.triu_indices(len(distinct), 1)
        grams.append(3 * _PAIR + 128 * distinct[first] + distinct[second])
        return np.concatenate(grams)


@functools.cache
def load_lexicon() -> Lexicon:
    """Read the shipped lexicon, once."""
    return Lexicon.read()


def _inflected(word: str) -> Sequence[str]:
    if not word.isascii():
        return ()
    stem = word.removesuffix("e")
    return (word + "s", word + "es", stem + "ed", stem + "ing")


def _by_first_character(words: Sequence[str]) -> list[str]:
    """Return a pattern for the words, the longest first, that a text's other characters pass by quickly; none for no words."""
    rest: dict[str, list[str]] = {}
    for word in words:
        rest.setdefault(word[0], []).append(re.escape(word[1:]))
    ways = "|".join(f"{first}(?:{'|'.join(ends)})" for first, ends in rest.items())
    return [f"(?=[{''.join(rest)}])(?:{ways})"] if rest else []
