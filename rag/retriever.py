"""The hybrid retriever, a LangChain runnable: words and vectors together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from rag.access import Access
from rag.ranking import Candidates, Ranking, diversify, rank, reranked
from rag.store import ChunkStore

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

CANDIDATES = 100
MODEL_RERANKED = 30  # that a reranker from outside looks at; a model reads them all for each question


class HybridRetriever(BaseRetriever):
    """BM25 and vectors together; `rag/ranking.py` makes one ranking of both."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: ChunkStore
    access: Access | None
    dense_weight: float
    ranking: Ranking = Ranking()
    top_k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return self.search(query, self.store.embeddings.embed_query(query))

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        import asyncio

        vector = await self.store.embeddings.aembed_query(query)
        return await asyncio.to_thread(self.search, query, vector)

    def search(self, query: str, vector: list[float]) -> list[Document]:
        """Return the best `top_k` chunks, best first, with their `score` (0 to 1) in the metadata."""
        return self.rank(query, self.candidates(query, vector))

    def candidates(self, query: str, vector: list[float]) -> Candidates:
        """Return the chunks that words or vectors find."""
        near = self.store.nearest(vector, CANDIDATES, self.access)
        words = self.store.matching(query, CANDIDATES, self.access)
        documents = {str(document.id): document for document, _ in near}
        missing = [identity for identity in words if identity not in documents]
        documents |= {str(document.id): document for document in self.store.get_by_ids(missing)}
        return Candidates(documents, {str(document.id): score for document, score in near}, words)

    def rank(self, query: str, found: Candidates) -> list[Document]:
        """Return the best `top_k` of the candidates, best first."""
        ranked = rank(found, query, dense_weight=self.dense_weight, rerank=self.ranking.rerank != "none")
        if self.ranking.reranker:
            ranked = reranked(self.ranking.reranker, ranked[:MODEL_RERANKED], query)
        chosen = diversify(ranked, self.ranking.mmr, self.top_k) if self.ranking.mmr else ranked[: self.top_k]
        return [one.document.model_copy(update={"metadata": {**one.document.metadata, "score": one.relevance}}) for one in chosen]
