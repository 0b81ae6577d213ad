"""Passages as the prompt and the answer's sources see them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rag.compression import compressed
from rag.lexical import tokens

CITED_SHARE = 0.5  # of the answer's terms that a passage must hold to be cited
_MARK = re.compile(r"[\[【](\d{1,3})[\]】]")


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk."""

    text: str
    source: str
    page: int
    heading: str
    score: float
    index: str | None = None
    """Name and version of the index it was found in, where that may change from one search to the next."""

    @property
    def titled(self) -> str:
        """The text behind its path of headings."""
        return f"{self.heading}: {self.text}" if self.heading else self.text


def merged(lists: Sequence[Sequence[Passage]]) -> list[Passage]:
    """Return the best passages of several searches, each once with its best score, as many as the longest list has.

    One list keeps its order, which knows more than the scores; several have only these in common.
    """
    if len(lists) == 1:
        return list(lists[0])
    best: dict[tuple[str, int, str, str], Passage] = {}
    for passage in sorted((passage for found in lists for passage in found), key=lambda passage: -passage.score):
        best.setdefault((passage.source, passage.page, passage.heading, passage.text), passage)
    return list(best.values())[: max(map(len, lists), default=0)]


def fitted(
    passages: Sequence[Passage], question: str, budget: int, order: Literal["best-first", "edges"], kept_share: float = 1.0
) -> Context:
    """Number the passages and keep as many as `budget` characters hold; the first is kept, cut off if it must be.

    With a `kept_share` below 1 they keep the sentences that say most about the question.
    """
    if kept_share < 1:
        texts = compressed([passage.text for passage in passages], question, kept_share)
        passages = [replace(passage, text=text) for passage, text in zip(passages, texts, strict=True) if text]
    kept: list[Passage] = []
    left = budget
    for passage in passages:
        length = len(passage.titled)
        if length > left and kept:
            break
        kept.append(passage if length <= left else replace(passage, text=passage.text[:left]))
        left -= length
    # A model reads the beginning and the end of a long prompt best.
    return Context(tuple(kept if order == "best-first" else [*kept[::2], *kept[1::2][::-1]]))


@dataclass(frozen=True)
class Context:
    """Numbered passages as the prompt and the answer's sources see them."""

    passages: tuple[Passage, ...]

    @property
    def index(self) -> str | None:
        """Name and version of the index, where the passages know it."""
        return self.passages[0].index if self.passages else None

    @property
    def text(self) -> str:
        """The passages, numbered from 1."""
        return "\n\n".join(f"[{n}] {p.titled}" for n, p in enumerate(self.passages, start=1)) or "(none)"

    def texts(self) -> list[str]:
        """Return the passages as the prompt shows them, the one with number 1 first."""
        return [passage.titled for passage in self.passages]

    def sources(self) -> list[dict[str, Any]]:
        """Return what each number stands for."""
        return [
            {
                "number": number, "source": p.source, "page": p.page or None, "heading": p.heading or None,
                "score": round(p.score, 4), "excerpt": p.text[:240],
            }
            for number, p in enumerate(self.passages, start=1)
        ]  # fmt: skip

    def cited(self, answer: str) -> frozenset[int]:
        """Return the numbers that an answer cites and that stand for a passage."""
        return frozenset(number for number in map(int, _MARK.findall(answer)) if 1 <= number <= len(self.passages))

    def cite(self, answer: str) -> str:
        """Return the citations to put behind an answer that bears none of its own: passages that share most of its words.

        The model is asked to cite; small ones forget. A passage is cited when it holds at least half of the answer's
        terms, and no more than the best one is: nothing is cited for an answer that no passage supports.
        """
        if self.cited(answer):
            return ""
        terms = set(tokens(answer))
        if not terms:
            return ""
        shares = [len(terms & set(tokens(f"{p.heading} {p.text}"))) / len(terms) for p in self.passages]
        best = max(shares, default=0.0)
        return f" [{shares.index(best) + 1}]" if best >= CITED_SHARE else ""
