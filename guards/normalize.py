"""Text as a detector should see it, with a way back to the original characters.

`normalize` undoes what only changes how text looks; `guards.views` builds on it to undo what hides an attack.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_DASHES = frozenset("‐‑‒–—―−﹣－")
_SPACES = frozenset("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")


@dataclass(frozen=True)
class Normalized:
    """Normalised `text`; character i of it came from character `origin[i]` of the original."""

    text: str
    origin: Sequence[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Map a span of the normalised text to the original: end-exclusive, whole characters."""
        if start >= end:
            msg = f"empty span {start}:{end}"
            raise ValueError(msg)
        return self.origin[start], self.origin[end - 1] + 1


def is_invisible(char: str) -> bool:
    """Whether a character has no width: zero-width, bidi, tag and soft-hyphen characters, variation selectors."""
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def normalize(text: str) -> Normalized:
    """Fold width, digits of any script, dashes and spaces; drop characters that cannot be seen."""
    if text.isascii():
        return Normalized(text, range(len(text)))
    return assemble([fold(char) for char in text])


def assemble(pieces: list[str]) -> Normalized:
    """Join what each character of a text became; `pieces[i]` came from character i and may be empty."""
    joined = "".join(pieces)
    if len(joined) == len(pieces) and all(pieces):
        return Normalized(joined, range(len(joined)))
    return Normalized(joined, tuple(index for index, piece in enumerate(pieces) for _ in piece))


@functools.lru_cache(maxsize=16384)
def fold(char: str) -> str:
    """Return what one character is normalised to; empty where it cannot be seen."""
    if char.isascii():
        return char
    if char in _DASHES:
        return "-"
    if char in _SPACES:
        return " "
    if is_invisible(char):
        return ""
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    return unicodedata.normalize("NFKC", char)
