"""Mask personal data in text that arrives in pieces, without ever letting part of a value out.

The text is cut into runs: words of the characters that identifiers are made of, joined over single spaces where digits
are near. A value lies wholly inside one run, so a run is held back until a character arrives that ends it, and is then
searched as a whole. How the text was chunked therefore cannot change the result, and masking a full text is feeding it
in one piece. A run that never ends is searched in overlapping windows of bounded length, which masks no less.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guards.normalize import normalize
from guards.pii import Span, find_pii

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Detector = Callable[[str], list[Span]]

MAX_RUN = 1024  # characters held back at most
TAIL = 384  # an e-mail address has at most 320 characters

_ASCII_RUN = re.compile(r"[A-Za-z0-9._%+\-@:/#~?&=()\[\]]")
_PLATE = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼挂学警港澳·"


@functools.lru_cache(maxsize=8192)
def _kind(char: str) -> str:
    """`run`, `space` or `end`: what a character does to a run."""
    if char in _PLATE:
        return "run"
    folded = normalize(char).text
    if folded == " ":
        return "space"
    if folded == "" or all(_ASCII_RUN.match(c) for c in folded):
        return "run"
    return "end"


def _has_digit(word: str) -> bool:
    return any(char.isdigit() for char in word)


@dataclass
class Masker:
    """One stream of text: call `feed` with each piece, then `finish` once. `found` counts entities so far."""

    detect: Detector
    found: Counter[str] = field(default_factory=Counter)
    _pending: str = ""
    _swallowing: bool = False

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        self._pending += piece
        return self._drain(final=False)

    def finish(self) -> str:
        """Return the rest."""
        return self._drain(final=True)

    def _drain(self, *, final: bool) -> str:
        text, out, at = self._pending, [], 0
        while at < len(text):
            if _kind(text[at]) != "run":
                self._swallowing = False
                out.append(text[at])
                at += 1
                continue
            end, complete = self._run_end(text, at)
            if complete or (final and end - at < MAX_RUN):
                out.append(self._masked(text[at:end]))
                at = end
            elif end - at >= MAX_RUN:
                shown, used = self._overlong(text[at : at + MAX_RUN])
                out.append(shown)
                at += used
            else:
                break
        self._pending = text[at:]
        return "".join(out)

    @staticmethod
    def _run_end(text: str, start: int) -> tuple[int, bool]:
        """Return where the run that starts here ends, and whether that is known (not just the end of the buffer)."""
        limit = min(len(text), start + MAX_RUN)
        at, previous_has_digit = start, False
        while True:
            word = at
            while at < limit and _kind(text[at]) == "run":
                at += 1
            if at == limit:
                return at, False
            has_digit = _has_digit(text[word:at])
            if _kind(text[at]) != "space" or not (has_digit or previous_has_digit):
                return at, True
            if at + 1 == limit:
                return limit, False
            if _kind(text[at + 1]) != "run":
                return at, True
            previous_has_digit = has_digit
            at += 1

    def _masked(self, run: str) -> str:
        if self._swallowing:
            return ""
        out, at = [], 0
        for span in self.detect(run):
            self.found[span.entity] += 1
            out += [run[at : span.start], f"<{span.entity}>"]
            at = span.end
        out.append(run[at:])
        return "".join(out)

    def _overlong(self, run: str) -> tuple[str, int]:
        """Show the front of a run that fills the window; return it and how many characters were used up."""
        if self._swallowing:
            return "", len(run) - TAIL
        cut = len(run) - TAIL
        for span in self.detect(run):
            if span.start < cut < span.end:
                cut = span.start
        if cut == 0:  # one value longer than the window: hide it to the end of its run
            self._swallowing = True
            self.found["OVERLONG"] += 1
            return "<OVERLONG>", len(run) - TAIL
        return self._masked(run[:cut]), cut


def pii_masker(entities: Collection[str], threshold: float) -> Masker:
    """Return a masker for these entities."""
    return Masker(functools.partial(find_pii, entities=tuple(entities), threshold=threshold))


def mask(text: str, entities: Collection[str], threshold: float) -> tuple[str, Counter[str]]:
    """Mask a whole text; return it with the number of each entity found."""
    masker = pii_masker(entities, threshold)
    masked = masker.feed(text) + masker.finish()
    return masked, masker.found
