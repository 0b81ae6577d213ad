"""Retrieval as LangChain runnables: a hybrid retriever, and what the prompt gets to see of its passages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from rag.index import read_card
from rag.lexical import Bm25, tokens
from rag.vectors import LanceStore

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.embeddings import Embeddings

CANDIDATES = 100
CITED_SHARE = 0.5  # of the answer's terms that a passage must hold to be cited
_MARK = re.compile(r"\[(\d{1,3})\]")


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk."""

    text: str
    source: str
    page: int
    heading: str
    score: float


class HybridRetriever(BaseRetriever):
    """BM25 and vectors together, by a weighted sum of scores that are scaled within each list.

    Rank fusion with equal weights falls behind BM25 alone where the embedding model is weak; a weighted sum does not.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: LanceStore
    lexical: Bm25
    dense_weight: float
    top_k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return self._fuse(query, self.store.embeddings.embed_query(query))

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        import asyncio

        vector = await self.store.embeddings.aembed_query(query)
        return await asyncio.to_thread(self._fuse, query, vector)

    def _fuse(self, query: str, vector: list[float]) -> list[Document]:
        near = self.store.nearest(vector, CANDIDATES)
        words = self.lexical.search(query, CANDIDATES)
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


@dataclass(frozen=True)
class Context:
    """Numbered passages as the prompt and the answer's sources see them."""

    passages: tuple[Passage, ...]

    @property
    def text(self) -> str:
        """The passages, numbered from 1."""
        return "\n\n".join(f"[{n}] {_titled(p)}" for n, p in enumerate(self.passages, start=1)) or "(none)"

    def texts(self) -> list[str]:
        """Return the passages as the prompt shows them, the one with number 1 first."""
        return [_titled(passage) for passage in self.passages]

    def sources(self) -> list[dict[str, Any]]:
        """Return what each number stands for."""
        return [
            {
                "number": number, "source": p.source, "page": p.page or None, "heading": p.heading or None,
                "score": round(p.score, 4), "excerpt": p.text[:240],
            }
            for number, p in enumerate(self.passages, start=1)
        ]  # fmt: skip

    def cite(self, answer: str) -> str:
        """Return the citations to put behind an answer that bears none of its own: passages that share most of its words.

        The model is asked to cite; small ones forget. A passage is cited when it holds at least half of the answer's
        terms, and no more than the best one is: nothing is cited for an answer that no passage supports.
        """
        if any(1 <= int(number) <= len(self.passages) for number in _MARK.findall(answer)):
            return ""
        terms = set(tokens(answer))
        if not terms:
            return ""
        shares = [len(terms & set(tokens(f"{p.heading} {p.text}"))) / len(terms) for p in self.passages]
        best = max(shares, default=0.0)
        return f" [{shares.index(best) + 1}]" if best >= CITED_SHARE else ""


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
            store=LanceStore(index / "lance", embeddings), lexical=Bm25.open(index / "bm25"),
            dense_weight=dense_weight, top_k=top_k,
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
            length = len(_titled(passage))
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


def _titled(passage: Passage) -> str:
    return f"{passage.heading}: {passage.text}" if passage.heading else passage.text
