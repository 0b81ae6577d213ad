"""Reversible placeholders: `[EMAIL_ADDRESS_1]` goes to the model in a value's place, and is put back in the answer.

A vault belongs to one request. A chat's request carries the whole conversation, so numbering its values in their order gives
each the same number in every turn, and nothing is kept between requests: there is nothing of another caller's to be asked for.

Whoever writes a placeholder himself has it replaced, like a value, by one that stands for his own letters: none is forged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from guards.normalize import normalize

LITERAL = "LITERAL"
_OPEN, _CLOSE = r"[\[［【]", r"[\]］】]"
# Models change the case and the width of brackets; more than that is not taken for a placeholder.
FORM = re.compile(rf"{_OPEN}([A-Za-z][A-Za-z_]{{1,30}})_(\d{{1,4}}){_CLOSE}")
_MAX = 40
_BEGUN = re.compile(rf"{_OPEN}[A-Za-z_]{{0,32}}\d{{0,4}}\Z")
_WORD_END = re.compile(r"[\s\"'<>，。；！？、]")
_LINK = re.compile(r"(?i)[a-z][a-z0-9+.-]{1,15}://|\bwww\.|\b(?:mailto|data|javascript):|\]\(")
_MAX_WORD = 2048


@dataclass
class Vault:
    """The values of one request, by entity: the same value has the same placeholder."""

    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _values: dict[tuple[str, int], str] = field(default_factory=dict)

    def placeholder(self, entity: str, value: str) -> str:
        """Return the placeholder of a value."""
        key = entity, value if entity == LITERAL else re.sub(r"[\s().-]", "", normalize(value).text).casefold()
        if key not in self._numbers:
            number = self._counts[entity] = self._counts.get(entity, 0) + 1
            self._numbers[key], self._values[entity, number] = number, value
        return f"[{entity}_{self._numbers[key]}]"

    def value(self, found: re.Match[str]) -> str | None:
        """Return what a match of FORM stands for, None where it is no placeholder of this vault."""
        return self._values.get((found[1].upper(), int(found[2])))

    def restorer(self, *, urls: bool = False, quote: Callable[[str], str] = str) -> Restorer:
        """Return what puts values back in a text that arrives in pieces; in links only with `urls`, each through `quote`."""
        return Restorer(self, urls=urls, quote=quote)


@dataclass
class Restorer:
    """One stream of text: call `feed` with each piece, then `finish` once.

    A value in a link would leave with the first who opens it, and a link may be the work of an attacker's passage.
    """

    vault: Vault
    urls: bool = False
    quote: Callable[[str], str] = str
    _pending: str = ""
    _word: str = ""

    def feed(self, piece: str) -> str:
        """Return what may be shown so far: all but what may become a placeholder."""
        text = self._pending + piece
        begun = _BEGUN.search(text, max(0, len(text) - _MAX))
        cut = begun.start() if begun else len(text)
        self._pending = text[cut:]
        return self._restored(text[:cut])

    def finish(self) -> str:
        """Return the rest."""
        rest, self._pending = self._pending, ""
        return self._restored(rest)

    def _restored(self, text: str) -> str:
        out, at = [], 0
        for found in FORM.finditer(text):
            self._pass(text[at : found.start()])
            value = None if self._in_link() else self.vault.value(found)
            out += [text[at : found.start()], found[0] if value is None else self.quote(value)]
            self._pass(found[0])
            at = found.end()
        self._pass(text[at:])
        return "".join([*out, text[at:]])

    def _pass(self, text: str) -> None:
        self._word = (_WORD_END.split(self._word + text)[-1])[-_MAX_WORD:]

    def _in_link(self) -> bool:
        return not self.urls and _LINK.search(self._word) is not None
