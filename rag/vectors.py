"""LanceDB as the store of chunks and their vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from rag.chunks import headed

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "chunks"
_EMPTY: dict[str, Any] = {
    "source": "", "page": 0, "heading": "", "language": "", "date": "", "labels": [], "position": 0, "parent": "",
}  # fmt: skip


class LanceStore(VectorStore):
    """LanceDB as a LangChain VectorStore: cosine distance over unit vectors, one table."""

    def __init__(self, folder: Path, embeddings: Embeddings) -> None:
        import lancedb

        self._embeddings = embeddings
        self._database = lancedb.connect(folder)
        self._table: Any = self._database.open_table(TABLE) if (folder / f"{TABLE}.lance").is_dir() else None

    @property
    def embeddings(self) -> Embeddings:
        """The embedding model."""
        return self._embeddings

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: list[str] | None = None, **_: Any
    ) -> list[str]:
        """Embed and add texts; a text whose id is there already is replaced."""
        listed = list(texts)
        metadatas = metadatas or [{}] * len(listed)
        ids = ids or [hashlib.sha256(text.encode()).hexdigest()[:32] for text in listed]
        documents = [Document(page_content=t, metadata=m, id=i) for t, m, i in zip(listed, metadatas, ids, strict=True)]
        vectors = self._embeddings.embed_documents([headed(d.metadata.get("heading", ""), d.page_content) for d in documents])
        self.put(documents, vectors)
        return ids

    def put(self, documents: Sequence[Document], vectors: Any) -> None:
        """Add documents with vectors that are known already; one whose id is there already is replaced.

        `vectors` is of shape (documents, dimensions), in lists or as an array of float32.
        """
        rows = _rows(documents, vectors)
        if self._table is None:
            self._table = self._database.create_table(TABLE, rows)
        else:
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def all(self) -> tuple[list[Document], Any]:
        """Return every document in the order of writing, and their vectors: an array of float32 (documents, dimensions)."""
        import numpy as np

        if self._table is None:
            return [], np.zeros((0, 0), dtype=np.float32)
        rows = self._table.to_arrow()
        vectors = rows["vector"].combine_chunks()
        matrix = vectors.flatten().to_numpy().reshape(len(vectors), -1)
        return [_document(row) for row in rows.drop_columns(["vector"]).to_pylist()], matrix

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Delete texts by id."""
        if ids and self._table is not None:
            self._table.delete(f"id IN ({', '.join(repr(_safe(i)) for i in ids)})")
        return True

    def get_by_ids(self, ids: Iterable[str], /) -> list[Document]:
        """Return the texts with these ids."""
        listed = [repr(_safe(i)) for i in ids]
        if not listed or self._table is None:
            return []
        return [_document(row) for row in self._table.search().where(f"id IN ({', '.join(listed)})").to_list()]

    def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
        """Return the k texts nearest to the question."""
        return [document for document, _score in self.nearest(self._embeddings.embed_query(query), k)]

    def nearest(self, vector: list[float], k: int) -> list[tuple[Document, float]]:
        """Return the k texts nearest to a vector with their cosine similarity."""
        if self._table is None:
            return []
        rows = self._table.search(vector).distance_type("cosine").limit(k).to_list()
        return [(_document(row), 1.0 - float(row["_distance"])) for row in rows]

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Self:
        """Make a store in `folder` from texts."""
        store = cls(Path(kwargs["folder"]), embedding)
        store.add_texts(texts, metadatas)
        return store


def _rows(documents: Sequence[Document], vectors: Any) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    text, whole = pa.string(), pa.int32()
    kinds = {"page": whole, "position": whole, "labels": pa.list_(text)}
    columns: dict[str, Any] = {
        "id": pa.array([document.id for document in documents], text),
        "vector": pa.FixedSizeListArray.from_arrays(matrix.reshape(-1), matrix.shape[1]),
        "text": pa.array([document.page_content for document in documents], text),
    }
    for name, empty in _EMPTY.items():
        columns[name] = pa.array([document.metadata.get(name, empty) for document in documents], kinds.get(name, text))
    return pa.table(columns)


def _document(row: dict[str, Any]) -> Document:
    return Document(page_content=row["text"], metadata={name: row[name] for name in _EMPTY}, id=row["id"])


def _safe(identity: str) -> str:
    if not identity.isalnum():
        msg = f"not an id of a chunk: {identity!r}"
        raise ValueError(msg)
    return identity
