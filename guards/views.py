"""The views of a text that an injection scan looks at: folded, and with one layer of disguise taken off.

A view knows which characters of the original each of its own came from; what was decoded maps to the whole encoded run.
Decoding is one level deep, and the number and length of runs is bounded, so the cost is linear in the text.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from guards.normalize import Normalized, assemble, fold, normalize

MAX_RUNS = 8  # encoded runs looked into, for each encoding
MIN_DECODED = 6  # characters below which a decoded run says nothing

# Letters of other scripts that are drawn like Latin ones (after Unicode TR 39), already in lower case.
_LOOKALIKES = dict(
    zip("авеёіїјкмнорсԁтухѕһԛԝүɡıαβεηικνορτυχω", "abeeiijkmhopcdtyxshqwygiabenikvoptuxw", strict=True),
)
_LEET = str.maketrans("013457@$!", "oieastasi")
_LEET_WORD = re.compile(r"[a-z013457@$!]{3,40}")
_LEET_INSIDE = re.compile(r"[013457@$!][a-z]")
_SPACED = re.compile(r"(?<!\w)\w(?:[ ._*|\-]\w){3,}(?!\w)")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,4000}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{2}(?:[ :]?(?:0x|\\x)?[0-9A-Fa-f]{2}){7,2000}(?![0-9A-Za-z])")
_PERCENT = re.compile(r"(?:[\w.~+-]{0,40}%[0-9A-Fa-f]{2}){3,400}[\w.~+-]{0,40}", re.ASCII)
_WORD = re.compile(r"[a-z]{2,}")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the and you your are is to of in that all for what how not with this me it previous instructions ignore system "
        "prompt password show tell from now",
    )
)
_LATIN_OR_HAN = re.compile(r"[A-Za-z\u4e00-\u9fff]")
_ZERO_WIDTH = re.compile(r"[A-Za-z\u4e00-\u9fff][\u200b-\u200f\u2060-\u2064\ufeff\u00ad]+(?=[A-Za-z\u4e00-\u9fff])")
_TAGS = re.compile(r"[\U000e0020-\U000e007e]{8,}")


@dataclass(frozen=True)
class View:
    """One reading of a text; `run` is the encoded stretch of the original it was decoded from, None for the others."""

    name: str
    seen: Normalized
    run: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """What there is to read, in lower case."""
        return self.seen.text

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Map a span of the view to the original; raises ValueError when it is empty."""
        return self.run or self.seen.span(start, end)


def views(text: str) -> Iterator[View]:
    """Yield the folded text, then every other reading that differs from it."""
    folded = _folded(text)
    yield View("folded", folded)
    for name, seen in (("spaced", _unspaced(folded)), ("leet", _unleeted(folded))):
        if seen.text != folded.text:
            yield View(name, seen)
    yield from _decoded(text)
    turned = codecs.encode(folded.text, "rot13") if _LATIN_OR_HAN.search(folded.text) else ""
    if _commonness(turned) > max(1, _commonness(folded.text)):
        yield View("rot13", Normalized(turned, folded.origin))


def hidden_characters(text: str) -> int:
    """Return how many places of a text hide characters inside words, or messages in tag characters."""
    if text.isascii():
        return 0
    return len(_ZERO_WIDTH.findall(text)) + 8 * len(_TAGS.findall(text))


def read_folded(text: str) -> str:
    """Return the folded text without its map, for a classifier."""
    return _folded(text).text


def _folded(text: str) -> Normalized:
    if text.isascii():
        return Normalized(text.lower(), range(len(text)))
    return assemble([_plain(char) for char in text])


@functools.lru_cache(maxsize=16384)
def _plain(char: str) -> str:
    """Fold a character, take the accents off Latin letters and turn lookalikes into the Latin letters they are drawn as."""
    if unicodedata.combining(char):
        return ""
    plain = "".join(_LOOKALIKES.get(c, c) for c in fold(char).lower())
    parts = unicodedata.normalize("NFD", plain)
    if parts[:1].isascii():
        return "".join(c for c in parts if not unicodedata.combining(c))
    return plain


def _unspaced(folded: Normalized) -> Normalized:
    """Join letters that stand apart one by one."""
    keep = bytearray(b"\1" * len(folded.text))
    for match in _SPACED.finditer(folded.text):
        for index in range(match.start() + 1, match.end(), 2):
            keep[index] = 0
    if all(keep):
        return folded
    kept = [index for index, kept in enumerate(keep) if kept]
    return Normalized("".join(folded.text[i] for i in kept), tuple(folded.origin[i] for i in kept))


def _unleeted(folded: Normalized) -> Normalized:
    def plain(match: re.Match[str]) -> str:
        return match[0].translate(_LEET) if _LEET_INSIDE.search(match[0]) else match[0]

    return Normalized(_LEET_WORD.sub(plain, folded.text), folded.origin)


def _decoded(text: str) -> Iterator[View]:
    ways: tuple[tuple[str, re.Pattern[str], Callable[[str], bytes]], ...] = (
        ("base64", _BASE64, _from_base64), ("hex", _HEX, _from_hex), ("percent", _PERCENT, unquote_to_bytes),
    )  # fmt: skip
    plain = normalize(text)
    for name, pattern, decode in ways:
        for count, match in enumerate(pattern.finditer(plain.text)):
            if count == MAX_RUNS:
                break
            try:
                found = decode(match[0]).decode()
            except (ValueError, binascii.Error):
                continue
            if _readable(found):
                yield View(name, _folded(found), plain.span(match.start(), match.end()))
    for match in _TAGS.finditer(text):
        yield View("tags", _folded("".join(chr(ord(char) - 0xE0000) for char in match[0])), match.span())


def _from_base64(run: str) -> bytes:
    body = run.rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)


def _from_hex(run: str) -> bytes:
    return bytes.fromhex(re.sub(r"0x|\\x|[ :]", "", run))


def _readable(text: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in text)
    return len(text) >= MIN_DECODED and all(char.isprintable() or char in "\n\t" for char in text) and 2 * letters > len(text)


def _commonness(text: str) -> int:
    return sum(word in _COMMON for word in _WORD.findall(text))
