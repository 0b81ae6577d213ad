"""From what words and vectors found to one ranking, and how likely each passage is to answer.

Fusion puts both lists together. The lexical reranker then looks at the best of them: how much of the question, weighed by how
rare its terms are, stands in the chunk, in one sentence of it, and in the question's own order. Its few weights
are the same for every collection and language; `rag/train_ranker.py` made them, and `ranker.yaml` says from what.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from langchain_core.documents import BaseDocumentCompressor, Document

from rag.lexical import tokens
from rag.plugins import BadPlugin, make_plugin

FEATURES = ("words", "text", "sentence", "pairs", "length", "cosine")
"""What is known of a candidate: the scaled BM25 score, times the largest share of the question that any candidate holds; shares
of the question's terms in the chunk with its headings, and in its best sentence; share of its neighbouring terms that are
neighbours in the text; the natural logarithm of the text's number of terms; cosine similarity (the least of the list where it is
not known). Terms weigh as much as they are rare."""
LEXICAL_SHARE = 0.1
"""Weight of the lexical reranker beside the fusion, where one chunk stands out by its words."""
STANDS_OUT = 0.25
"""By how much of the best words' score the fifth is behind, for words to be trusted fully. Where many chunks have the question's
words, it is the meaning that tells them apart: the reranker counts less then, and vectors more."""
MEANING = 0.8  # how much more: 0.5 becomes 0.7
FEEDBACK, BEST = 0.5, 5
"""Weight of the likeness to the BEST first chunks (pseudo-relevance feedback), where no chunk stands out by its words: then
there are several that answer, and they are like each other."""
SIGHT = 5
RERANKED = 50  # candidates that are looked at; the others are left out
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True)
class Ranking:
    """How candidates become passages, as `bundle.yaml` explains it.

    `rerank` is "lexical", "none", or `module:callable` of something that returns a LangChain `BaseDocumentCompressor`.
    `neighbours` chunks before and after, of the same section, are shown with each that is found; `kept_share` of all that text
    is.
    """

    rerank: str = "lexical"
    mmr: float = 0.0
    order: Literal["best-first", "edges"] = "best-first"
    neighbours: int = 0
    kept_share: float = 1.0

    @functools.cached_property
    def reranker(self) -> BaseDocumentCompressor | None:
        """The reranker from outside, where there is one; raises BadPlugin."""
        return load_reranker(self.rerank) if ":" in self.rerank else None


@dataclass(frozen=True)
class Candidates:
    """The cosine similarity of chunks that vectors found, by id, and the BM25 score of those that words found.

    `documents` holds the chunks themselves, at least the best RERANKED by fusion that are still there; `vectors` those of what
    vectors found (float32, dimensions).
    """

    documents: dict[str, Document]
    cosines: dict[str, float]
    words: dict[str, float]
    vectors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Of each feature: its share of the lexical score, and what it adds to the log odds that a passage answers."""

    order: Mapping[str, float]
    relevance: Mapping[str, float]
    bias: float


@functools.cache
def load_weights() -> Weights:
    """Read the weights that come with this module."""
    told = yaml.safe_load(Path(__file__).with_name("ranker.yaml").read_text(encoding="utf-8"))
    return Weights(told["order"], told["relevance"], told["bias"])


def scale(found: Candidates) -> dict[str, tuple[float, float]]:
    """Return id -> dense and words' scores, each from 0 to 1 within its list; 0 where a list does not hold the chunk."""
    low, high = min(found.cosines.values(), default=0.0), max(found.cosines.values(), default=0.0)
    dense = {name: (cosine - low) / (high - low) if high > low else 1.0 for name, cosine in found.cosines.items()}
    best = max(found.words.values(), default=0.0) or 1.0
    return {name: (dense.get(name, 0.0), found.words.get(name, 0.0) / best) for name in found.cosines | found.words}


def fuse(scaled: Mapping[str, tuple[float, float]], dense_weight: float) -> list[str]:
    """Return ids by a weighted sum of both scores, best first.

    Rank fusion with equal weights falls behind BM25 alone where the embedding model is weak; a weighted sum does not.
    """
    return sorted(scaled, key=lambda name: (-dense_weight * scaled[name][0] - (1 - dense_weight) * scaled[name][1], name))


def apart(scaled: Mapping[str, tuple[float, float]]) -> float:
    """Return from 0 to 1 how far a chunk stands out by its words."""
    words = sorted((words for _, words in scaled.values()), reverse=True)
    return min(1.0, (words[0] - words[min(4, len(words) - 1)]) / STANDS_OUT) if words else 1.0


def trust(dense_weight: float, apart: float) -> tuple[float, float]:
    """Return the weights of the dense score and of the lexical reranker for one question."""
    return dense_weight + MEANING * dense_weight * (1 - dense_weight) * (1 - apart), LEXICAL_SHARE * apart


def feedback(order: Mapping[str, float], vectors: Mapping[str, Any]) -> dict[str, float]:
    """Return id -> likeness from 0 to 1 to the BEST first of an order, each counted by its score; 0 for what has no vector."""
    import numpy as np

    known = [name for name in sorted(order, key=lambda name: -order[name]) if name in vectors]
    if len(known) < BEST:
        return {}
    rows = np.asarray([vectors[name] for name in known], dtype=np.float32)
    likeness = rows @ (np.asarray([max(order[name], 0.0) for name in known[:BEST]], dtype=np.float32) @ rows[:BEST])
    low, span = likeness.min(), np.ptp(likeness)
    return dict(zip(known, ((likeness - low) / span).tolist(), strict=True)) if span > 0 else {}


@dataclass(frozen=True)
class Ranked:
    """A chunk, what it is ordered by, and the estimate from 0 to 1 that it answers."""

    document: Document
    order: float
    relevance: float

    @functools.cached_property
    def terms(self) -> frozenset[str]:
        """The terms of the chunk and of its headings."""
        return frozenset(tokens(self.document.page_content) + tokens(_heading(self.document)))


def rank(found: Candidates, question: str, *, dense_weight: float, rerank: bool) -> list[Ranked]:
    """Return the best RERANKED of the candidates, best first: by fusion, or in the better order of the lexical reranker."""
    weights, scaled = load_weights(), scale(found)
    names = [name for name in fuse(scaled, dense_weight)[:RERANKED] if name in found.documents]
    stands_out, lexical, share = apart(scaled), 0.0, 0.0
    if rerank:
        share = FEEDBACK * (1 - stands_out) * 4 * dense_weight * (1 - dense_weight)  # none where one side alone is wanted
        dense_weight, lexical = trust(dense_weight, stands_out)
    features = dict(zip(names, measure(found, scaled, question, names), strict=True))
    order = {
        name: dense_weight * scaled[name][0]
        + (1 - dense_weight) * scaled[name][1]
        + lexical * _sum(weights.order, features[name])
        for name in names
    }
    if share and (likeness := feedback(order, found.vectors)):
        order = {name: (1 - share) * value + share * likeness.get(name, 0.0) for name, value in order.items()}
    ranked = [
        Ranked(found.documents[name], order[name], _odds(weights.bias + _sum(weights.relevance, features[name])))
        for name in names
    ]
    if not rerank:
        return ranked
    best = sorted(ranked, key=lambda one: -one.order)
    firsts = [max(scaled, key=lambda name, by=by: scaled[name][by], default="") for by in (0, 1)]
    return in_sight(best, [one for one in best if one.document.id in firsts])


def in_sight(ranked: list[Ranked], firsts: Sequence[Ranked]) -> list[Ranked]:
    """Return a ranking with the first choices of words and of vectors among its first SIGHT: neither is overruled so far."""
    late = [one for one in firsts if one not in ranked[:SIGHT]]
    kept = [one for one in ranked if one not in late]
    return [*kept[: SIGHT - len(late)], *late, *kept[SIGHT - len(late) :]]


def load_reranker(path: str) -> BaseDocumentCompressor:
    """Return what `module:callable` makes; raises BadPlugin."""
    made = make_plugin("rerank", path)
    if not isinstance(made, BaseDocumentCompressor):
        raise BadPlugin(f"rerank: {path!r} returns a {type(made).__name__}, and not a LangChain BaseDocumentCompressor")
    return made


def reranked(reranker: BaseDocumentCompressor, ranked: Sequence[Ranked], question: str) -> list[Ranked]:
    """Return what a reranker from outside leaves, in its order; its `relevance_score`, where it tells one, is the estimate."""
    by_id = {str(one.document.id): one for one in ranked}
    # Many make new documents of text and metadata, without an id.
    told = [one.document.model_copy(update={"metadata": {**one.document.metadata, "id": name}}) for name, one in by_id.items()]
    left = [(by_id[str(one.id or one.metadata.get("id"))], one) for one in reranker.compress_documents(told, question)]
    return [
        replace(known, order=-float(place), relevance=document.metadata.get("relevance_score", known.relevance))
        for place, (known, document) in enumerate(left)
    ]


def diversify(ranked: Sequence[Ranked], mmr: float, top_k: int) -> list[Ranked]:
    """Return `top_k` chunks that say different things (maximal marginal relevance); `mmr` is the weight of what was said already.

    Two chunks are as like as the share of terms that they have in common (Jaccard): 1 for copies. Order is scaled from 0 to 1.
    """
    best = max((one.order for one in ranked), default=0.0)
    least = min((one.order for one in ranked), default=0.0)
    left, likeness = list(ranked), [0.0] * len(ranked)
    chosen: list[Ranked] = []
    while left and len(chosen) < top_k:
        values = [
            (1 - mmr) * ((one.order - least) / (best - least) if best > least else 1.0) - mmr * like
            for one, like in zip(left, likeness, strict=True)
        ]
        place = values.index(max(values))
        taken = left.pop(place)
        likeness.pop(place)
        chosen.append(taken)
        likeness = [max(like, _jaccard(one.terms, taken.terms)) for one, like in zip(left, likeness, strict=True)]
    return chosen


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)


def measure(
    found: Candidates, scaled: Mapping[str, tuple[float, float]], question: str, names: Sequence[str]
) -> list[tuple[float, ...]]:
    """Return FEATURES of each named candidate.

    How rare a term is, is counted among these candidates: every store can tell, and no word leaks of what a caller may not find.
    """
    asked = tokens(question)
    sought = frozenset(asked), frozenset(pairwise(asked))
    read = [_Reading.of(found.documents[name], *sought) for name in names]
    count = Counter(term for one in read for term in one.terms)
    idf = {term: math.log1p((len(read) - count[term] + 0.5) / (count[term] + 0.5)) for term in dict.fromkeys(asked)}
    pairs = {pair: idf[pair[0]] + idf[pair[1]] for pair in pairwise(asked)}
    all_terms, all_pairs = sum(idf.values()) or 1.0, sum(pairs.values()) or 1.0
    lowest = min(found.cosines.values(), default=0.0)

    @functools.cache
    def share(terms: frozenset[str]) -> float:
        return sum(weight for term, weight in idf.items() if term in terms) / all_terms

    # Where no chunk holds much of the question, the best by words is no match, only the best.
    covered = max((share(one.terms) for one in read), default=0.0)
    return [
        (
            scaled[name][1] * covered,
            share(one.terms),
            max(map(share, one.sentences), default=0.0),
            sum(weight for pair, weight in pairs.items() if pair in one.pairs) / all_pairs,
            math.log1p(one.length),
            found.cosines.get(name, lowest),
        )
        for name, one in zip(names, read, strict=True)
    ]


@dataclass(frozen=True)
class _Reading:
    """What a chunk holds of a question: terms, also in its headings; those of each sentence; neighbours. And its own length."""

    terms: frozenset[str]
    sentences: frozenset[frozenset[str]]
    pairs: frozenset[tuple[str, str]]
    length: int

    @classmethod
    def of(cls, document: Document, terms: frozenset[str], pairs: frozenset[tuple[str, str]]) -> _Reading:
        sentences = [tokens(part) for part in _SENTENCE.split(document.page_content)]
        held = [terms.intersection(sentence) for sentence in sentences]
        # A set is asked for each of the sentence's neighbours; to make a set of these would take most of the time.
        beside = [pairs.intersection(pairwise(sentence)) for sentence, some in zip(sentences, held, strict=True) if some]
        return cls(
            terms.intersection(tokens(_heading(document))).union(*held), frozenset(held), frozenset().union(*beside),
            sum(map(len, sentences)),
        )  # fmt: skip


def _heading(document: Document) -> str:
    return document.metadata.get("heading", "")


def _sum(weights: Mapping[str, float], features: Sequence[float]) -> float:
    return sum(weights.get(name, 0.0) * value for name, value in zip(FEATURES, features, strict=True))


def _odds(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))
