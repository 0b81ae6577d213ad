"""Text as a detector should see it, with a way back to the original characters."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_DASHES = frozenset("‐‑‒–—―−﹣－")
_SPACES = frozenset("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")


@dataclass(frozen=True)
class Normalized:
    """Normalised `text`; character i of it came from character `origin[i]` of the original."""

    text: str
    origin: tuple[int, ...]

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
        return Normalized(text, tuple(range(len(text))))
    folded: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        piece = _fold(char)
        folded.append(piece)
        origin.extend([index] * len(piece))
    return Normalized("".join(folded), tuple(origin))


def _fold(char: str) -> str:
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
