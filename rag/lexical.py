"""BM25 over words of European text and unigrams and bigrams of Chinese, Japanese and Korean."""

from __future__ import annotations

import functools
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_SCRIPT = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
# A run of CJK begins a new piece also where no space parts it from a number or a Latin name.
_PIECE = re.compile(rf"[{_SCRIPT}]+|[^\W_{_SCRIPT}]+")
_CJK = re.compile(rf"[{_SCRIPT}]")
_FIRST = "\u3040"  # of the script
_STEMS = 32_768  # words whose stems are kept


@functools.cache
def _stem() -> Callable[[str], str]:
    import Stemmer

    return functools.lru_cache(_STEMS)(Stemmer.Stemmer("english").stemWord)


def tokens(text: str) -> list[str]:
    """Return the search terms of a text: stems, and of each run of CJK its characters, then its pairs of characters."""
    stem = _stem()
    terms: list[str] = []
    for piece in _PIECE.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()):
        if piece[0] >= _FIRST and _CJK.match(piece):
            terms += piece
            terms += map(operator.add, piece, piece[1:])
        else:
            terms.append(stem(piece))
    return terms


def _scored(texts: Sequence[str]) -> Any:
    import bm25s

    # bm25s would number the terms in the order of a set, another one in each process; so the same texts give the same files.
    numbers: dict[str, int] = {}
    numbered = [[numbers.setdefault(term, len(numbers)) for term in tokens(text)] for text in texts]
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index((numbered, numbers), show_progress=False)
    return index


def weights(texts: Sequence[str]) -> Iterator[tuple[str, list[int], list[float]]]:
    """Yield each term with the places of the texts it is in, and what it adds to the score of each: BM25 as `Bm25` has it.

    A text's score is the sum over the question's terms, one that stands twice counted twice.
    """
    if not texts:
        return
    index = _scored(texts)
    places, scores, starts = (index.scores[name] for name in ("indices", "data", "indptr"))
    for term, number in index.vocab_dict.items():
        if number + 1 < len(starts):  # bm25s keeps a last number for the term of no letters
            part = slice(int(starts[number]), int(starts[number + 1]))
            yield term, places[part].tolist(), scores[part].tolist()


class Bm25:
    """A BM25 index in a folder (bm25s, memory-mapped when read)."""

    def __init__(self, index: Any, ids: list[str]) -> None:
        self._index = index
        self.ids = ids

    @classmethod
    def build(cls, folder: Path, texts: list[str], ids: list[str]) -> None:
        """Index the texts and write the index."""
        index = _scored(texts)
        index.save(folder, corpus=None, show_progress=False)
        (folder / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> Bm25:
        """Open an index."""
        import bm25s

        ids = (folder / "ids.txt").read_text(encoding="utf-8").split()
        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False), ids)

    def search(self, question: str, k: int, mask: Any = None) -> dict[str, float]:
        """Return id -> score for the k best texts that share a term with the question.

        `mask` holds a 1 for each text that may be found and a 0 for the others, in the order of `ids`: float32 (texts,).
        """
        terms = tokens(question)
        if not terms:
            return {}
        found, scores = self._index.retrieve([terms], k=min(k, len(self.ids)), show_progress=False, weight_mask=mask)
        return {self.ids[int(i)]: float(s) for i, s in zip(found[0], scores[0], strict=True) if s > 0}
