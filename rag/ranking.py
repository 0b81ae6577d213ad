"""From what words and vectors found to one ranking."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_core.documents import Document


@dataclass(frozen=True)
class Candidates:
    """Chunks by id, with the cosine similarity of those that vectors found and the BM25 score of those that words found."""

    documents: dict[str, Document]
    cosines: dict[str, float]
    words: dict[str, float]


def fuse(found: Candidates, dense_weight: float) -> dict[str, float]:
    """Return id -> score from 0 to 1: a weighted sum of both scores, each scaled within its list.

    Rank fusion with equal weights falls behind BM25 alone where the embedding model is weak; a weighted sum does not.
    """
    low, high = min(found.cosines.values(), default=0.0), max(found.cosines.values(), default=0.0)
    dense = {name: (cosine - low) / (high - low) if high > low else 1.0 for name, cosine in found.cosines.items()}
    best = max(found.words.values(), default=0.0) or 1.0
    return {
        name: dense_weight * dense.get(name, 0.0) + (1 - dense_weight) * found.words.get(name, 0.0) / best
        for name in found.documents
    }
