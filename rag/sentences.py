"""Sentences of both languages."""

from __future__ import annotations

import re

ENDS = frozenset(".!?;。！？；…")
# Chinese has no spaces to go by. A line that begins a list's item counts as a sentence.
_END = re.compile(r"[。！？；…]+[”’』」）]*|[.!?;]+[\"')\]]*(?=\s)|\n(?=\s*(?:[-*+•]|\d+[.)、])\s)")


def sentences(text: str) -> list[str]:
    """Return a text's sentences, which make the text when joined."""
    ends = [match.end() for match in _END.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if end > start]
