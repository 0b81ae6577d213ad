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
    from collections.abc import Callable, Iterable, Sequence

Hold = Literal["identifier", "clause", "sentence"]

MAX_SEGMENT = 4096  # characters held back at most
TAIL = 2048  # a value of at most so many is hidden wherever it stands; signed tokens with many claims have as many
MAX_BLOCK = 16_384  # a private key of 16,384 bits in PEM has 12,700
CONTEXT = 16  # characters before a segment that may say what it is

_ASCII_RUN = re.compile(r"[A-Za-z0-9._%+\-@:/#~?&=()\[\]!$'*^`{|}]")
# Characters of number plates, and brackets that placeholders may have.
_OTHER_RUN = frozenset("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼挂学警港澳·【】")
# A full stop after a title or an initial ends no sentence.
_SENTENCE_END = re.compile(r"[。！？；\n]|(?:[!?;]|(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bProf)(?<!\b[A-Z])\.)(?=\s)")
_BLOCK_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-{4,5}")
_BLOCK_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}(?:-----|----(?=[^-]))")
_MAYBE_BLOCK = re.compile(r"-{1,5}(?: ?(?:B|BE|BEG|BEGI|BEGIN(?: [A-Z0-9 ]{0,60}-{0,4})?)?)?\Z")
_BLOCK_HEAD = 80  # characters that the first line of a block has at most

# What characters do to a run, one letter each: `r` in it, `d` in it and a digit, `s` a space, `e` ends it. A word with a digit is
# joined to what follows it, over single spaces; and so is a word right after it, for the groups of an IBAN or the name in a date.
_DIGIT_WORD, _WORD = "r*+d[rd]*+", "r++(?!d)"
_RUN = re.compile(rf"{_DIGIT_WORD}(?:s(?:{_DIGIT_WORD}|{_WORD}s{_DIGIT_WORD}))*+(?:s{_WORD}(?:s{_WORD})?+)?+|{_WORD}")
_OPEN_RUN = re.compile(r"[rd]*d[rd]*(?:sr+)?s\Z")


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
    _kinds: str = ""
    _last: str = ""
    _looked: int = 0
    """How far the end of a block was looked for."""

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        self._pending += piece
        if self.hold == "identifier":
            self._kinds += "".join(map(_identifier_kind, piece))
        elif self.hold == "clause":
            before = [self._last, *piece]
            self._kinds += "".join("e" if _ends_clause(a, b) else _clause_kind(b) for a, b in zip(before, piece, strict=False))
            self._last = piece[-1:] or self._last
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
                self.stopped, self._pending, self._kinds = stop, "", ""
        return "".join(out)

    def _go(self, out: list[str], *, final: bool) -> None:
        text, at = self._pending, 0
        while at < len(text):
            end, complete, limit = self._segment(at, final=final)
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
        self._pending, self._kinds, self._looked = text[at:], self._kinds[at:], max(0, self._looked - at)

    def _pass(self, text: str) -> None:
        self._looked = 0
        self._context = (self._context + text)[-CONTEXT:]

    def _segment(self, start: int, *, final: bool) -> tuple[int, bool, int]:
        """Return where the segment that starts here ends, whether that is sure, and how long it may be."""
        text = self._pending
        if self.blocks and text[start] == "-" and (begun := _BLOCK_BEGIN.match(text, start)):
            ended = _BLOCK_END.search(text, max(begun.end(), self._looked - _BLOCK_HEAD), start + MAX_BLOCK)
            self._looked = 0 if ended else len(text)
            return (ended.end(), True, MAX_BLOCK) if ended else (min(len(text), start + MAX_BLOCK), False, MAX_BLOCK)
        end, sure = self._sentence(start) if self.hold == "sentence" else self._run(start)
        if self.blocks and (begun := _BLOCK_BEGIN.search(text, start, end + _BLOCK_HEAD)) and begun.start() < end:
            return begun.start(), True, MAX_SEGMENT
        if self.blocks and not final and (maybe := _MAYBE_BLOCK.search(text, max(start, len(text) - _BLOCK_HEAD))):
            sure = sure and maybe.start() >= end
            # Until it is known whether a block begins in it, a segment must not be cut.
            return end, sure, MAX_SEGMENT if maybe.start() >= end else MAX_BLOCK
        return end, sure, MAX_SEGMENT

    def _sentence(self, start: int) -> tuple[int, bool]:
        within = self._pending[start : start + MAX_SEGMENT + 1]
        ended = _SENTENCE_END.search(within)
        if ended and ended.end() <= MAX_SEGMENT:
            return start + ended.end(), True
        return start + min(len(within), MAX_SEGMENT), False

    def _run(self, start: int) -> tuple[int, bool]:
        """Return where the run that starts here ends, and whether that is known (not just the end of the buffer)."""
        limit = min(len(self._kinds), start + MAX_SEGMENT)
        found = _RUN.match(self._kinds, start, limit)
        if found is None:
            return start, True
        if found.end() == limit:
            return limit, False
        if found.end() + 1 == limit and _OPEN_RUN.search(self._kinds, start, limit):
            return limit, False
        return found.end(), True

    def _shown(self, segment: str) -> str:
        if self._swallowing:
            return ""
        return rewritten(segment, self.find(segment, self._context), self.replace)

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


def rewritten(text: str, values: Iterable[T], replace: Callable[[T, str], str]) -> str:
    """Return a text with each value, in order and without overlaps, replaced by what `replace(value, its text)` returns."""
    out: list[str] = []
    at = 0
    for value in values:
        out += [text[at : value.start], replace(value, text[value.start : value.end])]
        at = value.end
    return "".join([*out, text[at:]])


@functools.lru_cache(maxsize=8192)
def _identifier_kind(char: str) -> str:
    """Return what a character does to a run: a letter of `_RUN`."""
    folded = normalize(char).text
    if folded == " ":
        return "s"
    if char in _OTHER_RUN or all(map(_ASCII_RUN.match, folded)):
        return "d" if char.isdigit() else "r"
    return "e"


def _ends_clause(before: str, char: str) -> bool:
    """Whether an ASCII mark stands where Chinese has its own; elsewhere it may be part of a password."""
    return char in ",;!?" and "\u3400" <= before <= "\u9fff"


@functools.lru_cache(maxsize=8192)
def _clause_kind(char: str) -> str:
    kind = _identifier_kind(char)
    if kind != "e" or char.isspace() or (not char.isascii() and unicodedata.category(char)[0] in "PS"):
        return kind
    return "d" if char.isdigit() else "r"
