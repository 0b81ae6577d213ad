"""The hybrid retriever, a LangChain runnable: words and vectors together."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from rag.access import Access
from rag.chunks import rejoined
from rag.embedding import MAX_CHARACTERS
from rag.ranking import RERANKED, Candidates, Ranking, diversify, fuse, rank, reranked, scale
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
        vector = await self.store.embeddings.aembed_query(query)
        return await asyncio.to_thread(self.search, query, vector)

    def search(self, query: str, vector: list[float]) -> list[Document]:
        """Return the best `top_k` chunks, best first, with their `score` (0 to 1) in the metadata.

        Of a longer query the first MAX_CHARACTERS count, for words as for vectors.
        """
        query = query[:MAX_CHARACTERS]
        return self.widened(self.rank(query, self.candidates(query, vector)))

    def candidates(self, query: str, vector: list[float]) -> Candidates:
        """Return what words or vectors find, with the chunks themselves as far as `rank` looks at them."""
        near = self.store.nearest(vector, CANDIDATES, self.access)
        words = self.store.matching(query, CANDIDATES, self.access)
        by_id = {str(one.document.id): one for one in near}
        found = Candidates(
            {name: one.document for name, one in by_id.items()}, {name: one.cosine for name, one in by_id.items()}, words,
            {name: one.vector for name, one in by_id.items()},
        )  # fmt: skip
        best = fuse(scale(found), self.dense_weight)[:RERANKED]
        missing = [identity for identity in best if identity not in found.documents]
        found.documents.update({str(document.id): document for document in self.store.get_by_ids(missing)})
        return found

    def widened(self, chosen: list[Document]) -> list[Document]:
        """Return passages with their neighbours of the same section in their text; what one has shown, the next leaves out."""
        most = self.ranking.neighbours
        if not most or not chosen:
            return chosen
        near = {place + step for _, place in map(_place, chosen) for step in range(-most, most + 1) if place + step >= 0}
        sections = list(dict.fromkeys(parent for parent, _ in map(_place, chosen)))
        known = {_place(chunk): chunk for chunk in self.store.of_sections(sections, sorted(near), self.access)}
        shown: set[tuple[str, int]] = set()
        widened: list[Document] = []
        for chunk in chosen:
            parent, place = _place(chunk)
            if (parent, place) in shown:
                continue
            first = last = place
            while place - first < most and (parent, first - 1) in known.keys() - shown:
                first -= 1
            while last - place < most and (parent, last + 1) in known.keys() - shown:
                last += 1
            run = [(parent, at) for at in range(first, last + 1)]
            shown |= set(run)
            texts = [chunk.page_content if at == (parent, place) else known[at].page_content for at in run]
            widened.append(chunk.model_copy(update={"page_content": functools.reduce(rejoined, texts)}))
        return widened

    def rank(self, query: str, found: Candidates) -> list[Document]:
        """Return the best `top_k` of the candidates, best first."""
        ranked = rank(found, query, dense_weight=self.dense_weight, rerank=self.ranking.rerank != "none")
        if self.ranking.reranker:
            ranked = reranked(self.ranking.reranker, ranked[:MODEL_RERANKED], query)
        chosen = diversify(ranked, self.ranking.mmr, self.top_k) if self.ranking.mmr else ranked[: self.top_k]
        return [one.document.model_copy(update={"metadata": {**one.document.metadata, "score": one.relevance}}) for one in chosen]


def _place(chunk: Document) -> tuple[str, int]:
    return chunk.metadata["parent"], chunk.metadata["position"]
