"""Sentences and content terms of English and Chinese text."""

# ruff: noqa: E501, SIM905  patterns and word lists are read whole

from __future__ import annotations

import functools
import re

_CITATION = r"[\[【]\d{1,3}(?:\s?[,，、]\s?\d{1,3})*[\]】]"
CITATION = re.compile(_CITATION)
_BREAK = re.compile(
    rf"(?:[。！？!?；]+|(?<![A-Z])(?<!\b[A-Z]r)(?<!\b[a-z]\.[a-z])(?<!\bvs)(?<!\betc)(?<!\bMrs)(?<!\bSt)(?<!\bNo)\.(?=[\s\[\"”)']|$)|[;](?=\s)|\n)"
    rf"[”\"’」』)）]*(?:[ ]?{_CITATION})*[.。]?"
)
_LEAD = re.compile(r"(?:\s|[-*•#>]+\s|\d{1,2}[.)、]\s)*")
_CJK = r"\u3400-\u9fff\uf900-\ufaff"
_PIECE = re.compile(rf"[{_CJK}]+|[A-Za-z\u00c0-\u024f]+(?:['’][a-z]+)?")
_STOP = frozenset(
    "a an the of to in on at by for with from as is are was were be been being am do does did done have has had having it its this "
    "that these those there here he she they we you i his her their our your my him them us me and or but if so than then also into "
    "about which who whom whose what when where while can could may might will would shall should must not no nor only each every "
    "any all some such more most other very just both between up out over under after before during per via according yes s t".split()
)
_PARTICLES = frozenset("的了在是和与及或也都就而且被把对于从到以为之其这那有个们等着过吗呢吧啊请您你我他她它将会可")


@functools.cache
def _stemmer() -> object:
    import Stemmer

    return Stemmer.Stemmer("english")


@functools.lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the stem of a lower-case English word."""
    return _stemmer().stemWord(word.removesuffix("'s").removesuffix("’s"))  # pyright: ignore[reportAttributeAccessIssue]  no stubs


def split(text: str) -> list[tuple[int, int]]:
    """Return the sentences of a text as spans, without list marks before them and with the citations behind them."""
    spans: list[tuple[int, int]] = []
    at = 0
    for match in _BREAK.finditer(text):
        spans.append((at, match.end()))
        at = match.end()
    spans.append((at, len(text)))
    trimmed: list[tuple[int, int]] = []
    for start, stop in spans:
        lead = _LEAD.match(text, start, stop)
        begin = lead.end() if lead else start
        end = begin + len(text[begin:stop].rstrip())
        if end > begin:
            trimmed.append((begin, end))
    return trimmed


def is_chinese(text: str) -> bool:
    """Whether a text is for the greater part Chinese: one of its characters weighs two Latin letters."""
    chinese = sum("\u3400" <= char <= "\u9fff" for char in text)
    return 2 * chinese >= sum(char.isascii() and char.isalpha() for char in text) and chinese > 0


@functools.lru_cache(maxsize=4096)
def terms(text: str) -> frozenset[str]:
    """Return the content terms of a text: English stems, and bigrams of Chinese characters that are not both particles."""
    found: set[str] = set()
    for piece in _PIECE.findall(CITATION.sub(" ", text)):
        if piece[0] >= "\u3400":
            pairs = (piece[i : i + 2] for i in range(len(piece) - 1)) if len(piece) > 1 else (piece,)
            found.update(pair for pair in pairs if not all(char in _PARTICLES for char in pair))
        elif (word := piece.lower()) not in _STOP and not word.endswith(("n't", "n’t")):
            found.add(stem(word))
    return frozenset(found)
