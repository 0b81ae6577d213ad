"""A collection that is open for search, and what of its passages fits into a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rag.context import Context, Passage
from rag.index import read_card
from rag.lexical import Bm25
from rag.ranking import Ranking
from rag.retriever import HybridRetriever
from rag.vectors import LanceStore

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings


class Collection:
    """A collection that is open for search."""

    def __init__(
        self, index: Path, *, embedder: str, embeddings: Embeddings, top_k: int, dense_weight: float, min_score: float,
        max_context_characters: int, ranking: Ranking | None = None,
    ) -> None:  # fmt: skip
        self.card = read_card(index, embedder)
        self._min_score = min_score
        self._budget = max_context_characters
        ranking = ranking or Ranking()
        self._order = ranking.order
        _ = ranking.reranker  # what cannot be imported is told now, and not at the first question
        self.retriever = HybridRetriever(
            store=LanceStore(index / "lance", embeddings), lexical=Bm25.open(index / "bm25"),
            dense_weight=dense_weight, top_k=top_k,
            ranking=ranking,
        )  # fmt: skip

    async def search(self, question: str) -> list[Passage]:
        """Return passages, best first."""
        documents = await self.retriever.ainvoke(question)
        passages = [_passage(document) for document in documents]
        return [passage for passage in passages if passage.score >= self._min_score]

    def fit(self, passages: list[Passage]) -> Context:
        """Number the passages and keep as many as the budget holds; the first is kept, cut off if it must be."""
        kept: list[Passage] = []
        left = self._budget
        for passage in passages:
            length = len(passage.titled)
            if length > left and kept:
                break
            kept.append(
                passage
                if length <= left
                else Passage(passage.text[:left], passage.source, passage.page, passage.heading, passage.score)
            )
            left -= length
        # A model reads the beginning and the end of a long prompt best.
        return Context(tuple(kept if self._order == "best-first" else [*kept[::2], *kept[1::2][::-1]]))


def _passage(document: Document) -> Passage:
    told = document.metadata
    return Passage(document.page_content, told["source"], told["page"], told["heading"], told["score"])
