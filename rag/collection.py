"""A collection that is open for search, and what of its passages fits into a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rag.access import Access
from rag.context import Context, Passage, fitted, merged
from rag.embedded import EmbeddedStore
from rag.index import UnusableIndex, check_card, read_index
from rag.ranking import Ranking
from rag.retriever import HybridRetriever
from rag.store import ChunkStore
from rag.uploads import Uploads
from rag.versions import Versions, card_of

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings


class Collection:
    """A collection that is open for search: an index in a folder, or the current version on a server."""

    def __init__(
        self, index: Path | Versions, *, embedder: str, embeddings: Embeddings, top_k: int, dense_weight: float, min_score: float,
        max_context_characters: int, ranking: Ranking | None = None,
    ) -> None:  # fmt: skip
        self._min_score = min_score
        self._budget = max_context_characters
        ranking = ranking or Ranking()
        self._order: Literal["best-first", "edges"] = ranking.order
        self._kept_share = ranking.kept_share
        _ = ranking.reranker  # what cannot be imported is told now, and not at the first question
        self._embedder = embedder
        self._versions = None if isinstance(index, Path) else index
        version: str | None = None
        if isinstance(index, Path):
            self._card = check_card(read_index(index), embedder)
            store: ChunkStore = EmbeddedStore(index, embeddings)
        else:
            version, store = self._newest(index, embeddings)
        retriever = HybridRetriever(store=store, access=None, dense_weight=dense_weight, top_k=top_k, ranking=ranking)
        self._searched = (version, retriever)

    async def search(self, question: str, access: Access | None, top_k: int | None = None) -> list[Passage]:
        """Return the passages that may be found, best first, at most `top_k`; no access looks at everything, for tools.

        On a server, a search begins and ends in one version. Raises StoreError.
        """
        if self._versions is not None:
            await asyncio.to_thread(self._follow, self._versions)
        version, retriever = self._searched
        name = f"{self._versions.collection}:{version}" if self._versions else None
        changes = {"access": access, "top_k": top_k or retriever.top_k}
        documents = await retriever.model_copy(update=changes).ainvoke(question)
        passages = [_passage(document, name) for document in documents]
        return [passage for passage in passages if passage.score >= self._min_score]

    def documents(self, access: Access | None) -> dict[str, dict[str, Any]]:
        """Return what the card tells of each document that may be found, by its source. Raises StoreError."""
        if self._versions is not None:
            self._follow(self._versions)
        return {
            source: one
            for source, one in self._card["sources"].items()
            if one.get("chunks") and (access is None or access.allows(one["tenant"], frozenset(one["labels"])))
        }

    def version(self) -> str | None:
        """Return what changes when the documents do while the box serves, None where they cannot. Raises StoreError."""
        return self._versions.current() if self._versions is not None else None

    def _follow(self, versions: Versions) -> None:
        """Go where the pointer points."""
        opened, retriever = self._searched
        if versions.current() != opened:
            version, store = self._newest(versions, retriever.store.embeddings)
            self._searched = (version, retriever.model_copy(update={"store": store}))

    def _newest(self, versions: Versions, embeddings: Embeddings) -> tuple[str, ChunkStore]:
        version = versions.current()
        if version is None:
            raise UnusableIndex(f"the server has no index {versions.collection!r}; run `ekiben rag ingest`")
        self._card = check_card(card_of(versions, version), self._embedder)
        return version, versions.open(version, embeddings)

    def close(self) -> None:
        """Let go of a server's connections."""
        if self._versions is not None:
            self._versions.close()

    def fit(self, passages: list[Passage], question: str = "") -> Context:
        """Number the passages and keep what the budget holds, made shorter for the question where the collection wants that."""
        return fitted(passages, question, self._budget, self._order, self._kept_share)


class Searchable(Protocol):
    """What is needed of a collection that can grow."""

    async def search(self, question: str, access: Access | None, top_k: int | None = None) -> list[Passage]: ...  # noqa: D102

    def documents(self, access: Access | None) -> dict[str, dict[str, Any]]: ...  # noqa: D102

    def version(self) -> str | None: ...  # noqa: D102

    def fit(self, passages: list[Passage], question: str = "") -> Context: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class GrowingCollection:
    """A collection, and what callers added to it, searched together; `open_index` opens the index of these."""

    def __init__(self, collection: Searchable, uploads: Uploads, open_index: Callable[[Path], Collection]) -> None:
        self.collection, self.uploads, self._open = collection, uploads, open_index
        self._added: tuple[tuple[Path, int], Collection] | None = None

    async def search(self, question: str, access: Access | None, top_k: int | None = None) -> list[Passage]:
        """As a collection's."""
        added = await asyncio.to_thread(self._now)
        asked = [self.collection, added] if added else [self.collection]
        return merged(await asyncio.gather(*(one.search(question, access, top_k) for one in asked)))

    def documents(self, access: Access | None) -> dict[str, dict[str, Any]]:
        """As a collection's."""
        added = self._now()
        return self.collection.documents(access) | (added.documents(access) if added else {})

    def version(self) -> str | None:
        """As a collection's."""
        added = self.uploads.index()
        return f"{self.collection.version()}+{added.name if added else None}"

    def fit(self, passages: list[Passage], question: str = "") -> Context:
        """As a collection's."""
        return self.collection.fit(passages, question)

    def close(self) -> None:
        """As a collection's."""
        self.collection.close()

    def _now(self) -> Collection | None:
        remade = False
        while (index := self.uploads.index()) is not None:
            try:
                # Made anew, an index may have the name of one before.
                known = index, index.stat().st_mtime_ns
                if self._added is not None and self._added[0] == known:
                    return self._added[1]
                self._added = known, self._open(index)
            except FileNotFoundError:
                # Two changes came meanwhile, and the index is gone.
                if self.uploads.index() == index:
                    raise
            except UnusableIndex:
                # A version of Ekiben before this one, or after it, made it.
                if remade:
                    raise
                self.uploads.remake()
                remade = True
        return None


def _passage(document: Document, index: str | None) -> Passage:
    told = document.metadata
    return Passage(document.page_content, told["source"], told["page"], told["heading"], told["score"], index)
