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
# A link ends at white space, in pointed brackets at theirs, in an attribute at the end of the line: what else may stand in a
# link depends on who shows it. Without a scheme (`//host`, `host.com/`) it still is one.
_LINK = re.compile(
    r"(?i)(?P<pointed>\]\( ?<|<[a-z][a-z0-9+.-]{1,15}:)|(?P<attribute>\b(?:href|src) ?=)"
    r"|(?P<word>//|\bwww\.|\b(?:mailto|data|javascript|tel|sms):|\]\(|[a-z0-9]\.[a-z]{2,24}[/?#])|(?P<end>[\s>])"
)
_LINK_TAIL = 32  # characters that tell a link, at most
# Entities that are written with separators or without, and those of which each letter counts.
_GROUPED = frozenset({
    "CN_BANK_CARD", "CN_ID_CARD", "CN_LANDLINE", "CN_MOBILE", "CN_PLATE", "CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN",
})  # fmt: skip
_EXACT = re.compile(rf"{LITERAL}|SECRET_|URL")


@dataclass
class Vault:
    """The values of one request, by entity: the same value has the same placeholder."""

    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _values: dict[tuple[str, int], str] = field(default_factory=dict)

    def placeholder(self, entity: str, value: str) -> str:
        """Return the placeholder of a value."""
        key = entity, _same(entity, value)
        if key not in self._numbers:
            number = self._counts[entity] = self._counts.get(entity, 0) + 1
            self._numbers[key], self._values[entity, number] = number, value
        return f"[{entity}_{self._numbers[key]}]"

    @property
    def empty(self) -> bool:
        """Whether nothing was replaced, forged placeholders neither."""
        return not self._values

    def hidden(self, text: str) -> str:
        """Return a text with its values behind their placeholders again."""
        for (entity, number), value in sorted(self._values.items(), key=lambda one: -len(one[1])):
            text = text if entity == LITERAL else text.replace(value, f"[{entity}_{number}]")
        return text

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
    _tail: str = ""
    _link: str = ""

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
        """Learn from the text whether what follows stands in a link."""
        whole, new = self._tail + text, len(self._tail)
        for found in _LINK.finditer(whole):
            if found.end() <= new:
                continue
            if found.lastgroup != "end":
                self._link = self._link if self._link and found.lastgroup == "word" else found.lastgroup or ""
            elif found[0] == "\n" or (found[0] == ">" and self._link == "pointed") or (found[0] != ">" and self._link == "word"):
                self._link = ""
        self._tail = whole[-_LINK_TAIL:]

    def _in_link(self) -> bool:
        return not self.urls and bool(self._link)


def _same(entity: str, value: str) -> str:
    """Return what all forms of a value have in common."""
    if _EXACT.match(entity):
        return value
    seen = normalize(value).text.casefold()
    return re.sub(r"[\s().-]" if entity in _GROUPED else r"\s", "", seen)
