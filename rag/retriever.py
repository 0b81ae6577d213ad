"""The hybrid retriever, a LangChain runnable: words and vectors together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from rag.access import Access
from rag.store import ChunkStore

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

CANDIDATES = 100


class HybridRetriever(BaseRetriever):
    """BM25 and vectors together, by a weighted sum of scores that are scaled within each list.

    Rank fusion with equal weights falls behind BM25 alone where the embedding model is weak; a weighted sum does not.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: ChunkStore
    access: Access | None
    dense_weight: float
    top_k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return self._fuse(query, self.store.embeddings.embed_query(query))

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        import asyncio

        vector = await self.store.embeddings.aembed_query(query)
        return await asyncio.to_thread(self._fuse, query, vector)

    def _fuse(self, query: str, vector: list[float]) -> list[Document]:
        near = self.store.nearest(vector, CANDIDATES, self.access)
        words = self.store.matching(query, CANDIDATES, self.access)
        documents = {str(document.id): document for document, _ in near}
        missing = [identity for identity in words if identity not in documents]
        documents |= {str(document.id): document for document in self.store.get_by_ids(missing)}
        similarities = [score for _, score in near]
        low, high = min(similarities, default=0.0), max(similarities, default=0.0)
        dense = {str(d.id): (s - low) / (high - low) if high > low else 1.0 for d, s in near}
        best = max(words.values(), default=0.0)
        scores = {
            identity: self.dense_weight * dense.get(identity, 0.0)
            + (1 - self.dense_weight) * (words.get(identity, 0.0) / best if best else 0.0)
            for identity in documents
        }
        ranked = sorted(documents, key=lambda identity: (-scores[identity], identity))[: self.top_k]
        return [documents[i].model_copy(update={"metadata": {**documents[i].metadata, "score": scores[i]}}) for i in ranked]
