"""Find and replace values in text that arrives in pieces, without ever letting part of a value out.

The text is cut into segments, and a value lies wholly inside one. A segment is held back until a character arrives that ends
it, and is then searched as a whole, with the characters before it as context. So how the text was chunked cannot change the
result, and a full text is one piece. Segments are as short as what is looked for allows:

identifier: words of the characters that identifiers are made of, joined over single spaces where digits are near.
clause: up to white space or a mark of Chinese punctuation: addresses, passwords.
sentence: names, dates in words.

A segment that never ends is searched in overlapping windows of bounded length, which hides no less. A private key is held
from its first line to its last.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from guards.normalize import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Hold = Literal["identifier", "clause", "sentence"]

MAX_SEGMENT = 1024  # characters held back at most
TAIL = 384  # an e-mail address has at most 320 characters
MAX_BLOCK = 16_384  # a private key of 16,384 bits in PEM has 12,700
CONTEXT = 16  # characters before a segment that may say what it is

_ASCII_RUN = re.compile(r"[A-Za-z0-9._%+\-@:/#~?&=()\[\]]")
_PLATE = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼挂学警港澳·"
_SENTENCE_END = re.compile(r"[。！？；\n]|[.!?;](?=\s)")
_BLOCK_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-{4,5}")
_BLOCK_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-{4,5}")
_MAYBE_BLOCK = re.compile(r"-{1,5}(?: ?(?:B|BE|BEG|BEGI|BEGIN(?: [A-Z0-9 ]{0,60}-{0,4})?)?)?\Z")


class Stop(Exception):
    """Raised by `replace` where a text must end before a value."""


class Located(Protocol):
    """A value from `start` to `end` (exclusive)."""

    @property
    def start(self) -> int: ...  # noqa: D102
    @property
    def end(self) -> int: ...  # noqa: D102


T = TypeVar("T", bound=Located)


@dataclass
class Window(Generic[T]):
    """One stream of text: call `feed` with each piece, then `finish` once.

    `find(segment, context)` returns the values in a segment, in order and without overlaps; it may be asked twice about the
    same text. `replace(value, text)` returns what is shown in a value's place and is asked once for each. When it raises Stop
    the text ends before this segment: `stopped` holds it, and nothing more is shown.
    """

    find: Callable[[str, str], Sequence[T]]
    replace: Callable[[T, str], str]
    hold: Hold = "identifier"
    blocks: bool = True
    """Whether private keys are held as a whole."""
    stopped: Stop | None = None
    _pending: str = ""
    _context: str = ""
    _swallowing: bool = False

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        self._pending += piece
        return self._drain(final=False)

    def finish(self) -> str:
        """Return the rest."""
        return self._drain(final=True)

    def _drain(self, *, final: bool) -> str:
        out: list[str] = []
        if self.stopped is None:
            try:
                self._go(out, final=final)
            except Stop as stop:
                self.stopped, self._pending = stop, ""
        return "".join(out)

    def _go(self, out: list[str], *, final: bool) -> None:
        text, at = self._pending, 0
        while at < len(text):
            end, complete, limit = self._segment(text, at, final=final)
            if end == at:  # a character that ends segments
                self._swallowing = False
                out.append(text[at])
                self._pass(text[at])
                at += 1
            elif complete or (final and end - at < limit):
                out.append(self._shown(text[at:end]))
                self._pass(text[at:end])
                at = end
                self._swallowing = self._swallowing and self.hold != "sentence"
            elif end - at >= limit:
                shown, used = self._overlong(text[at : at + limit])
                out.append(shown)
                self._pass(text[at : at + used])
                at += used
            else:
                break
        self._pending = text[at:]

    def _pass(self, text: str) -> None:
        self._context = (self._context + text)[-CONTEXT:]

    def _segment(self, text: str, start: int, *, final: bool) -> tuple[int, bool, int]:
        """Return where the segment that starts here ends, whether that is sure, and how long it may be."""
        if self.blocks and text[start] == "-":
            if begun := _BLOCK_BEGIN.match(text, start):
                ended = _BLOCK_END.search(text, begun.end(), start + MAX_BLOCK)
                return (ended.end(), True, MAX_BLOCK) if ended else (min(len(text), start + MAX_BLOCK), False, MAX_BLOCK)
            if not final and _MAYBE_BLOCK.match(text, start):
                return len(text), False, MAX_SEGMENT
        if self.hold == "sentence":
            limit = min(len(text), start + MAX_SEGMENT)
            ended = _SENTENCE_END.search(text, start, limit + 1)
            return (ended.end(), True, MAX_SEGMENT) if ended and ended.end() <= limit else (limit, False, MAX_SEGMENT)
        return *_run_end(text, start, _identifier_kind if self.hold == "identifier" else _clause_kind), MAX_SEGMENT

    def _shown(self, segment: str) -> str:
        if self._swallowing:
            return ""
        out, at = [], 0
        for value in self.find(segment, self._context):
            out += [segment[at : value.start], self.replace(value, segment[value.start : value.end])]
            at = value.end
        return "".join([*out, segment[at:]])

    def _overlong(self, segment: str) -> tuple[str, int]:
        """Show the front of a segment that fills the window; return it and how many characters were used up."""
        if self._swallowing:
            return "", len(segment) - TAIL
        cut = len(segment) - TAIL
        for value in self.find(segment, self._context):
            if value.start < cut < value.end:
                cut = value.start
        if cut == 0:  # one value longer than the window: hide it to the end of its segment
            self._swallowing = True
            [first, *_] = self.find(segment, self._context)
            return self.replace(first, segment), len(segment) - TAIL
        return self._shown(segment[:cut]), cut


def _run_end(text: str, start: int, kind: Callable[[str], str]) -> tuple[int, bool]:
    """Return where the run that starts here ends, and whether that is known (not just the end of the buffer)."""
    limit = min(len(text), start + MAX_SEGMENT)
    at, previous_has_digit = start, False
    while True:
        word = at
        while at < limit and kind(text[at]) == "run":
            at += 1
        if at == limit:
            return at, False
        if at == start:
            return at, True
        has_digit = any(char.isdigit() for char in text[word:at])
        if kind(text[at]) != "space" or not (has_digit or previous_has_digit):
            return at, True
        if at + 1 == limit:
            return limit, False
        if kind(text[at + 1]) != "run":
            return at, True
        previous_has_digit = has_digit
        at += 1


@functools.lru_cache(maxsize=8192)
def _identifier_kind(char: str) -> str:
    """`run`, `space` or `end`: what a character does to a run."""
    if char in _PLATE:
        return "run"
    folded = normalize(char).text
    if folded == " ":
        return "space"
    return "run" if folded == "" or all(_ASCII_RUN.match(c) for c in folded) else "end"


@functools.lru_cache(maxsize=8192)
def _clause_kind(char: str) -> str:
    if _identifier_kind(char) != "end":
        return _identifier_kind(char)
    if char.isspace():
        return "end"
    return "run" if char.isascii() or unicodedata.category(char)[0] not in "PS" else "end"
