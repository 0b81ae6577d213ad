"""A collection that is open for search, and what of its passages fits into a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rag.access import Access
from rag.context import Context, Passage
from rag.embedded import EmbeddedStore
from rag.index import read_card
from rag.retriever import HybridRetriever

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings


class Collection:
    """A collection that is open for search."""

    def __init__(
        self, index: Path, *, embedder: str, embeddings: Embeddings, top_k: int, dense_weight: float, min_score: float,
        max_context_characters: int,
    ) -> None:  # fmt: skip
        self.card = read_card(index, embedder)
        self._min_score = min_score
        self._budget = max_context_characters
        self.retriever = HybridRetriever(
            store=EmbeddedStore(index, embeddings), access=None, dense_weight=dense_weight, top_k=top_k
        )

    async def search(self, question: str, access: Access | None, top_k: int | None = None) -> list[Passage]:
        """Return the passages that may be found, best first, at most `top_k`; no access looks at everything, for tools."""
        changes = {"access": access, "top_k": top_k or self.retriever.top_k}
        documents = await self.retriever.model_copy(update=changes).ainvoke(question)
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
        return Context(tuple(kept))


def _passage(document: Document) -> Passage:
    told = document.metadata
    return Passage(document.page_content, told["source"], told["page"], told["heading"], told["score"])
