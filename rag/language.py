"""The language of a text, by its script."""

from __future__ import annotations

import re

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_WORD = re.compile(r"[A-Za-z]{2,}")


def language_of(text: str) -> str:
    """Return "zh" where Chinese characters outnumber Latin words, "en" where it is the other way, "" where there is neither."""
    chinese, words = len(_HAN.findall(text)), len(_WORD.findall(text))
    return "" if chinese == words == 0 else "zh" if chinese > words else "en"
