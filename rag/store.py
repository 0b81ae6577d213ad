"""What a store of chunks is: LangChain's VectorStore, with access inside every search, dense and by words."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from rag.access import Access
from rag.chunks import headed

EMPTY: dict[str, Any] = {
    "source": "", "page": 0, "heading": "", "language": "", "date": "", "tenant": "", "labels": [], "position": 0, "parent": "",
}  # fmt: skip
"""The metadata that every chunk has in every store, and what stands where a document brings none."""
ANN_ROWS = 5_000
"""From so many chunks on vectors are searched by an approximate index; below, every one is compared."""
BATCH = 1_000


class StoreError(RuntimeError):
    """A store cannot be reached or used; the message says which and what to do."""


class Near(NamedTuple):
    """A chunk that vectors found: its cosine similarity to the question, and its vector (float32, dimensions)."""

    document: Document
    cosine: float
    vector: Any


class ChunkStore(VectorStore):
    """Chunks with unit vectors. Searches see what was written when `finish` was last called.

    `access` says what a search may find, and holds before the k best are taken: who may see little still gets k results
    where there are k. None looks at everything, for tools.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    @property
    def embeddings(self) -> Embeddings:
        """The embedding model."""
        return self._embeddings

    @abstractmethod
    def put(self, documents: Sequence[Document], vectors: Any) -> None:
        """Add documents with their vectors, lists or an array of float32 (documents, dimensions); equal ids are replaced."""

    @abstractmethod
    def finish(self) -> None:
        """Index what was written since, for both searches; their statistics are of all chunks."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[list[Document], Any]]:
        """Yield every document in the order of writing, with its vector: arrays of float32 (documents, dimensions)."""

    @abstractmethod
    def count(self) -> int:
        """Return how many chunks there are."""

    @abstractmethod
    def nearest(self, vector: list[float], k: int, access: Access | None) -> list[Near]:
        """Return the k texts nearest to a vector, the nearest first."""

    @abstractmethod
    def matching(self, question: str, k: int, access: Access | None) -> dict[str, float]:
        """Return id -> BM25 score for the k best texts that share a term with the question."""

    @abstractmethod
    def of_sections(self, parents: Sequence[str], positions: Sequence[int], access: Access | None) -> list[Document]:
        """Return the chunks of these sections (`parent`) that stand at one of these positions, in any order."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: list[str] | None = None, **_: Any
    ) -> list[str]:
        """Embed and add texts; a text whose id is there already is replaced."""
        listed = list(texts)
        metadatas = metadatas or [{}] * len(listed)
        ids = ids or [hashlib.sha256(text.encode()).hexdigest()[:32] for text in listed]
        documents = [Document(page_content=t, metadata=m, id=i) for t, m, i in zip(listed, metadatas, ids, strict=True)]
        self.put(documents, self._embeddings.embed_documents([searched(document) for document in documents]))
        self.finish()
        return ids

    def similarity_search(self, query: str, k: int = 4, *, access: Access | None = None, **_: Any) -> list[Document]:
        """Return the k texts nearest to the question."""
        return [near.document for near in self.nearest(self._embeddings.embed_query(query), k, access)]

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **_: Any) -> Any:
        """Not offered: where the store is to be is told to each kind otherwise. Make one and call `add_texts`."""
        raise NotImplementedError


def searched(document: Document) -> str:
    """Return the text by which a chunk is found: as it is embedded, and as its words are counted."""
    return headed(document.metadata.get("heading", ""), document.page_content)


def completed(document: Document) -> dict[str, Any]:
    """Return a document's metadata with nothing missing."""
    return {name: document.metadata.get(name, empty) for name, empty in EMPTY.items()}
