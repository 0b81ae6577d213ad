"""From what words and vectors found to one ranking, and how likely each passage is to answer.

Fusion puts both lists together. The lexical reranker then looks at the best of them: how much of the question, weighed by how
rare its terms are, stands in the text, in one sentence of it, in its headings, and in the question's own order. Its few weights
are the same for every collection and language; `rag/train_ranker.py` made them, and `ranker.yaml` says from what.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml
from langchain_core.documents import Document

from rag.lexical import tokens

FEATURES = ("words", "text", "heading", "sentence", "pairs", "length", "cosine")
"""The scaled BM25 score; shares of the question's terms in text or headings, in the headings, in the best sentence; share of its
neighbouring terms that are neighbours in the text; the natural logarithm of the text's number of terms; cosine similarity (the
least of the list where it is not known)."""
RERANKED = 50  # candidates that are looked at; the others stay behind them
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True)
class Candidates:
    """Chunks by id, with the cosine similarity of those that vectors found and the BM25 score of those that words found."""

    documents: dict[str, Document]
    cosines: dict[str, float]
    words: dict[str, float]


@dataclass(frozen=True)
class Ranked:
    """A chunk, and the estimate from 0 to 1 that it answers."""

    document: Document
    relevance: float


@dataclass(frozen=True)
class Weights:
    """Of each feature: its share of the score by words, and what it adds to the log odds that a passage answers."""

    order: Mapping[str, float]
    relevance: Mapping[str, float]
    bias: float

    @classmethod
    def load(cls) -> Weights:
        """Read the weights that come with this module."""
        return _load()


@functools.cache
def _load() -> Weights:
    told = yaml.safe_load(Path(__file__).with_name("ranker.yaml").read_text(encoding="utf-8"))
    return Weights(told["order"], told["relevance"], told["bias"])


def scale(found: Candidates) -> dict[str, tuple[float, float]]:
    """Return id -> dense and words' scores, each from 0 to 1 within its list; 0 where a list does not hold the chunk."""
    low, high = min(found.cosines.values(), default=0.0), max(found.cosines.values(), default=0.0)
    dense = {name: (cosine - low) / (high - low) if high > low else 1.0 for name, cosine in found.cosines.items()}
    best = max(found.words.values(), default=0.0) or 1.0
    return {name: (dense.get(name, 0.0), found.words.get(name, 0.0) / best) for name in found.documents}


def fuse(scaled: Mapping[str, tuple[float, float]], dense_weight: float) -> list[str]:
    """Return ids by a weighted sum of both scores, best first.

    Rank fusion with equal weights falls behind BM25 alone where the embedding model is weak; a weighted sum does not.
    """
    return sorted(scaled, key=lambda name: (-dense_weight * scaled[name][0] - (1 - dense_weight) * scaled[name][1], name))


class Question:
    """A question's terms, weighed by how rare they are; it measures passages."""

    def __init__(self, text: str, idf: Callable[[Iterable[str]], Mapping[str, float]]) -> None:
        terms = tokens(text)
        self._idf = idf(set(terms))
        self._whole = sum(self._idf.values()) or 1.0
        self._pairs = {pair: self._idf[pair[0]] + self._idf[pair[1]] for pair in pairwise(terms)}
        self._all_pairs = sum(self._pairs.values()) or 1.0

    def measure(self, document: Document) -> tuple[float, ...]:
        """Return a passage's FEATURES but the first and the last, which the searches know."""
        heading = tokens(document.metadata.get("heading", ""))
        sentences = [tokens(part) for part in _SENTENCE.split(document.page_content)]
        neighbours = {pair for sentence in sentences for pair in pairwise(sentence)}
        return (
            self._share({*heading, *(term for sentence in sentences for term in sentence)}),
            self._share(heading),
            max(map(self._share, sentences), default=0.0),
            sum(weight for pair, weight in self._pairs.items() if pair in neighbours) / self._all_pairs,
            math.log1p(sum(map(len, sentences))),
        )

    def _share(self, terms: Iterable[str]) -> float:
        return sum(self._idf[term] for term in self._idf.keys() & set(terms)) / self._whole


def rank(found: Candidates, question: Question, *, dense_weight: float, rerank: bool, top_k: int) -> list[Ranked]:
    """Return the best `top_k` of the candidates, best first; with `rerank` the best RERANKED are put into a better order."""
    weights, scaled = Weights.load(), scale(found)
    names = fuse(scaled, dense_weight)
    measured: dict[str, tuple[float, ...]] = {}
    if rerank:
        measured = measure(found, scaled, question, names[:RERANKED])
        order = {
            name: dense_weight * scaled[name][0] + (1 - dense_weight) * _sum(weights.order, features)
            for name, features in measured.items()
        }
        names[:RERANKED] = sorted(order, key=lambda name: (-order[name], name))
    names = names[:top_k]
    measured |= measure(found, scaled, question, [name for name in names if name not in measured])
    return [Ranked(found.documents[name], _odds(weights.bias + _sum(weights.relevance, measured[name]))) for name in names]


def measure(
    found: Candidates, scaled: Mapping[str, tuple[float, float]], question: Question, names: Iterable[str]
) -> dict[str, tuple[float, ...]]:
    """Return id -> FEATURES."""
    lowest = min(found.cosines.values(), default=0.0)
    return {name: (scaled[name][1], *question.measure(found.documents[name]), found.cosines.get(name, lowest)) for name in names}


def _sum(weights: Mapping[str, float], features: Sequence[float]) -> float:
    return sum(weights.get(name, 0.0) * value for name, value in zip(FEATURES, features, strict=True))


def _odds(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))
