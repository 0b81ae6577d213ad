"""Qdrant as the store: a collection of points for each version, with a dense and a sparse vector each."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from rag.access import Access
from rag.embedding import NoEmbeddings
from rag.lexical import tokens, weights
from rag.store import EMPTY, ChunkStore, Near, StoreError, completed, searched
from rag.versions import Version, Versions

_REGISTRY = "ekiben-versions"
_BATCH = 256
_DENSE, _WORDS = "dense", "words"


class QdrantVersions(Versions):
    """Versions of a collection on one server: an alias is the pointer, and a small collection says which are whole."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client = client
        self.collection = collection
        with _reported():
            if not client.collection_exists(_REGISTRY):
                client.create_collection(_REGISTRY, vectors_config={})
                client.create_payload_index(_REGISTRY, "collection", models.PayloadSchemaType.KEYWORD)

    def all(self) -> list[Version]:
        """Return the registered versions, oldest first."""
        current = self.current()
        mine = models.Filter(must=[models.FieldCondition(key="collection", match=models.MatchValue(value=self.collection))])
        with _reported():
            points = [point for batch in _scrolled(self._client, _REGISTRY, mine) for point in batch]
        found = [point.payload or {} for point in points]
        return [
            Version(told["version"], told["made"][:16], told["chunks"], told["version"] == current)
            for told in sorted(found, key=lambda told: (told["made"], told["version"]))
        ]

    def card(self, version: str) -> dict[str, Any] | None:
        """Return how a registered version was made; None where there is no such version."""
        with _reported():
            points = self._client.retrieve(_REGISTRY, [self._point(version)])
        return (points[0].payload or {})["card"] if points else None

    def begin(self, version: str, dimensions: int) -> QdrantStore:
        """Return an empty store for a version."""
        self.remove(version)
        name = self._name(version)
        with _reported():
            self._client.create_collection(
                name,
                # Unit vectors: the product is the cosine, and what is stored is what was given.
                vectors_config={_DENSE: models.VectorParams(size=dimensions, distance=models.Distance.DOT)},
                sparse_vectors_config={_WORDS: models.SparseVectorParams()},
            )
            for field in ("tenant", "labels"):
                self._client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)
        return QdrantStore(self._client, name, NoEmbeddings())

    def register(self, version: str, card: dict[str, Any]) -> None:
        """Say that a version is whole."""
        told = {
            "collection": self.collection, "version": version, "card": card, "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
            "chunks": QdrantStore(self._client, self._name(version), NoEmbeddings()).count(),
        }  # fmt: skip
        with _reported():
            self._client.upsert(_REGISTRY, [models.PointStruct(id=self._point(version), vector={}, payload=told)])

    def open(self, version: str, embeddings: Embeddings) -> QdrantStore:
        """Return the store of a registered version."""
        return QdrantStore(self._client, self._name(version), embeddings)

    def current(self) -> str | None:
        """Return the version that is searched; None where none is."""
        with _reported():
            aliases = self._client.get_aliases().aliases
        return next((a.collection_name.rpartition(".")[2] for a in aliases if a.alias_name == self.collection), None)

    def switch(self, version: str) -> None:
        """Let searches that begin from now on go to this version: one request changes the alias."""
        new = models.CreateAlias(collection_name=self._name(version), alias_name=self.collection)
        old = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.collection))
        changes = [models.CreateAliasOperation(create_alias=new)]
        with _reported():
            self._client.update_collection_aliases([old, *changes] if self.current() else changes)

    def remove(self, version: str) -> None:
        """Remove a version, whole or not."""
        with _reported():
            self._client.delete(_REGISTRY, models.PointIdsList(points=[self._point(version)]))
            if self._client.collection_exists(self._name(version)):
                self._client.delete_collection(self._name(version))

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def _name(self, version: str) -> str:
        return f"{self.collection}.{version}"

    def _point(self, version: str) -> str:
        return _uuid(self._name(version))


class QdrantStore(ChunkStore):
    """One version: dense vectors by their product, BM25 as the product with sparse vectors of weights."""

    def __init__(self, client: QdrantClient, name: str, embeddings: Embeddings) -> None:
        super().__init__(embeddings)
        self._client = client
        self._name = name

    def put(self, documents: Sequence[Document], vectors: Any) -> None:
        """Add documents with their vectors; equal ids are replaced."""
        points = [
            models.PointStruct(
                id=_uuid(str(document.id)), vector={_DENSE: [float(number) for number in vector]},
                payload={"id": document.id, "text": document.page_content, **completed(document)},
            )
            for document, vector in zip(documents, vectors, strict=True)
        ]  # fmt: skip
        with _reported():
            for start in range(0, len(points), _BATCH):
                self._client.upsert(self._name, points[start : start + _BATCH], wait=True)

    def finish(self) -> None:
        """Index what was written since."""
        documents = [document for batch, _ in self.batches() for document in batch]
        sparse: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for term, places, scores in weights([searched(document) for document in documents]):
            for place, score in zip(places, scores, strict=True):
                sparse[place][_key(term)] += score
        points = [
            models.PointVectors(id=_uuid(str(documents[place].id)), vector={_WORDS: _sparse(row)})
            for place, row in sparse.items()
        ]
        with _reported():
            for start in range(0, len(points), _BATCH):
                self._client.update_vectors(self._name, points[start : start + _BATCH], wait=True)

    def batches(self) -> Iterator[tuple[list[Document], Any]]:
        """Yield every document, in the order of Qdrant's own ids, with its vector."""
        import numpy as np

        with _reported():
            for points in _scrolled(self._client, self._name, None):
                dense: list[Any] = [_vector(point) for point in points]
                yield [_document(point) for point in points], np.array(dense, dtype=np.float32)

    def count(self) -> int:
        """Return how many chunks there are."""
        with _reported():
            return self._client.count(self._name, exact=True).count

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Delete texts by id."""
        with _reported():
            self._client.delete(self._name, models.PointIdsList(points=[_uuid(i) for i in ids or []]), wait=True)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the texts with these ids."""
        with _reported():
            return [_document(point) for point in self._client.retrieve(self._name, [_uuid(i) for i in ids])]

    def nearest(self, vector: list[float], k: int, access: Access | None) -> list[Near]:
        """Return the k texts nearest to a vector, the nearest first."""
        length = math.hypot(*vector) or 1.0
        points = self._best([x / length for x in vector], _DENSE, k, access, payload=True)
        return [Near(_document(point), point.score, _vector(point)) for point in points]

    def matching(self, question: str, k: int, access: Access | None) -> dict[str, float]:
        """Return id -> BM25 score for the k best texts that share a term with the question."""
        asked: dict[int, float] = defaultdict(float)
        for term in tokens(question):
            asked[_key(term)] += 1.0
        if not asked:
            return {}
        points = self._best(_sparse(asked), _WORDS, k, access, payload=["id"])
        return {(point.payload or {})["id"]: point.score for point in points if point.score > 0}

    def _best(self, query: Any, using: str, k: int, access: Access | None, *, payload: Any) -> list[models.ScoredPoint]:
        with _reported():
            return self._client.query_points(
                self._name, query=query, using=using, limit=k, query_filter=_allowed(access), with_payload=payload,
                with_vectors=[_DENSE] if using == _DENSE else False,
            ).points  # fmt: skip

    def of_sections(self, parents: Sequence[str], positions: Sequence[int], access: Access | None) -> list[Document]:
        """Return the chunks of these sections that stand at one of these positions."""
        if not parents or not positions:
            return []
        allowed = _allowed(access)
        wanted: list[models.Condition] = [
            models.FieldCondition(key="parent", match=models.MatchAny(any=list(parents))),
            models.FieldCondition(key="position", match=models.MatchAny(any=list(positions))),
            *([] if allowed is None else [allowed]),
        ]
        with _reported():
            many = len(parents) * len(positions)
            points, _ = self._client.scroll(self._name, models.Filter(must=wanted), limit=many)
        return [_document(point) for point in points]

    def close(self) -> None:
        """The connection belongs to the versions."""


def connect(url: str, api_key: str | None) -> QdrantClient:
    """Return a client of a server; nothing is asked yet."""
    return QdrantClient(url=url, api_key=api_key, timeout=30, check_compatibility=False)


def _allowed(access: Access | None) -> models.Filter | None:
    if access is None:
        return None
    tenant = models.FieldCondition(key="tenant", match=models.MatchAny(any=["", access.tenant]))
    nobodys: models.Condition = models.IsEmptyCondition(is_empty=models.PayloadField(key="labels"))
    theirs = models.FieldCondition(key="labels", match=models.MatchAny(any=sorted(access.labels)))
    return models.Filter(must=[tenant, models.Filter(should=[nobodys, theirs] if access.labels else [nobodys])])


def _scrolled(client: QdrantClient, name: str, mine: models.Filter | None) -> Iterator[list[models.Record]]:
    start: Any = None
    while True:
        points, start = client.scroll(name, mine, limit=_BATCH, offset=start, with_vectors=True)
        if points:
            yield points
        if start is None:
            return


def _vector(point: models.ScoredPoint | models.Record) -> Any:
    return (point.vector or {})[_DENSE]  # pyright: ignore[reportArgumentType, reportCallIssue]


def _document(point: Any) -> Document:
    told = point.payload
    return Document(page_content=told["text"], metadata={name: told[name] for name in EMPTY}, id=told["id"])


def _uuid(identity: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, identity))


def _key(term: str) -> int:
    """Return a term's place in sparse vectors: 32 bits are all that Qdrant has, so two terms in 4 billion share one."""
    return int.from_bytes(hashlib.sha256(term.encode("utf-8", "replace")).digest()[:4])


def _sparse(row: dict[int, float]) -> models.SparseVector:
    return models.SparseVector(indices=list(row), values=list(row.values()))


@contextmanager
def _reported() -> Generator[None]:
    try:
        yield
    except (ApiException, OSError) as error:
        told = str(error).strip().splitlines()
        msg = f"Qdrant: {told[0] if told else type(error).__name__}; see that it runs and that `store` is right"
        raise StoreError(msg) from error
