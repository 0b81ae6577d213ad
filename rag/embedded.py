"""The store without a server: LanceDB's table and a BM25 index in one folder, which several processes may read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from rag.access import Access
from rag.lexical import Bm25
from rag.rows import ROW_ID, Rows
from rag.store import ANN_ROWS, BATCH, EMPTY, ChunkStore, Near, completed, searched

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "chunks"
_TOLD = ["id", "text", *EMPTY]
_REFINED = 4  # times as many are compared as are asked for


class EmbeddedStore(ChunkStore):
    """LanceDB and bm25s in a folder: cosine distance over unit vectors, one table."""

    def __init__(self, folder: Path, embeddings: Embeddings) -> None:
        import lancedb

        super().__init__(embeddings)
        self._words = folder / "bm25"
        self._database = lancedb.connect(folder / "lance")
        self._table: Any = self._database.open_table(TABLE) if (folder / "lance" / f"{TABLE}.lance").is_dir() else None
        self._lexical: Bm25 | None = None
        self._owners: _Owners | None = None
        self._rows: Rows | None = None
        self._rows_file = folder / "rows.arrow"
        self._open_words()

    def put(self, documents: Sequence[Document], vectors: Any) -> None:
        """Add documents with their vectors; equal ids are replaced."""
        rows = _rows(documents, vectors)
        self._rows = None
        if self._table is None:
            self._table = self._database.create_table(TABLE, rows)
        else:
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def finish(self) -> None:
        """Index what was written since."""
        from lancedb.index import HnswSq

        if self._words.exists():
            shutil.rmtree(self._words)
        self._words.mkdir(parents=True)
        documents = [document for batch, _ in self.batches() for document in batch]
        if documents:
            Bm25.build(self._words, [searched(d) for d in documents], [str(d.id) for d in documents])
        if len(documents) >= ANN_ROWS:
            self._table.create_index("vector", config=HnswSq(distance_type="cosine"))
        if documents:
            rows = self._table.search().with_row_id(True).to_arrow()  # noqa: FBT003  their way
            Rows.write(self._rows_file, rows, self._table.version)
        self._open_words()

    def _open_words(self) -> None:
        if self._table is None or not (self._words / "ids.txt").is_file():
            self._lexical = self._owners = self._rows = None
            return
        self._lexical = Bm25.open(self._words)
        rows = Rows.open(self._rows_file, self._table.version)
        # A chunk has one number in both, by which it is known who may find it.
        self._rows = rows if rows and rows.ids == self._lexical.ids else None
        told = (
            self._rows.told
            if self._rows
            else self._table.search().select(["id", "tenant", "labels"]).limit(self.count()).to_arrow()
        )
        self._owners = _Owners(self._lexical.ids, told)

    def batches(self) -> Iterator[tuple[list[Document], Any]]:
        """Yield every document in the order of writing, with its vector."""
        if self._table is None:
            return
        for rows in self._table.to_arrow().to_batches(max_chunksize=BATCH):
            vectors = rows.column("vector")
            matrix = vectors.flatten().to_numpy().reshape(len(vectors), -1)
            yield [_document(row) for row in rows.drop_columns(["vector"]).to_pylist()], matrix

    def count(self) -> int:
        """Return how many chunks there are."""
        return 0 if self._table is None else int(self._table.count_rows())

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Delete texts by id."""
        if ids and self._table is not None:
            self._rows = None
            self._table.delete(f"id IN ({_quoted(ids)})")
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the texts with these ids."""
        if not ids or self._table is None:
            return []
        if self._rows is not None:
            return [_document(row) for row in self._rows.with_ids(ids)]
        return [_document(row) for row in self._table.search().where(f"id IN ({_quoted(ids)})").limit(len(ids)).to_list()]

    def nearest(self, vector: list[float], k: int, access: Access | None) -> list[Near]:
        """Return the k texts nearest to a vector, the nearest first."""
        if self._table is None:
            return []
        if self._rows is not None and self._owners is not None:
            places, cosines = self._rows.nearest(vector, k, self._near(self._rows, self._owners, vector, k, access))
            found = map(_document, self._rows.at(places))
            return list(map(Near, found, cosines.tolist(), self._rows.vectors[places]))
        # Written to since it was finished, or finished by a former version.
        search = self._table.search(vector).distance_type("cosine").refine_factor(_REFINED).limit(k)
        search = search.select([*_TOLD, "vector", "_distance"])
        if access is not None:
            search = search.where(_allowed(access), prefilter=True)
        rows = search.to_list()
        if len(rows) < k < self.count():
            # The approximate index gave up among chunks that may not be seen.
            rows = search.bypass_vector_index().to_list()
        return [Near(_document(row), 1.0 - float(row["_distance"]), row["vector"]) for row in rows]

    def _near(self, rows: Rows, owners: _Owners, vector: list[float], k: int, access: Access | None) -> Any:
        """Return the places of the rows that are worth comparing; None for all."""
        if access is not None and not owners.sees_all(access):
            return owners.places(access)
        if len(rows.ids) < ANN_ROWS:
            return None
        # The approximate index holds numbers of 8 bits; what it finds is compared again as it was written.
        search = self._table.search(vector).distance_type("cosine").limit(_REFINED * k).select(["_distance"])
        return rows.places_of(search.with_row_id(True).to_arrow().column(ROW_ID).to_numpy())  # noqa: FBT003  their way

    def matching(self, question: str, k: int, access: Access | None) -> dict[str, float]:
        """Return id -> BM25 score for the k best texts that share a term with the question."""
        if self._lexical is None or self._owners is None:
            return {}
        return self._lexical.search(question, k, None if access is None else self._owners.mask(access))

    def of_sections(self, parents: Sequence[str], positions: Sequence[int], access: Access | None) -> list[Document]:
        """Return the chunks of these sections that stand at one of these positions."""
        if self._table is None or not parents or not positions:
            return []
        wanted = f"parent IN ({_quoted(parents)}) AND position IN ({', '.join(str(int(place)) for place in positions)})"
        where = wanted if access is None else f"{wanted} AND {_allowed(access)}"
        return [_document(row) for row in self._table.search().where(where).limit(len(parents) * len(positions)).to_list()]

    def close(self) -> None:
        """Nothing is held that must be let go."""


class _Owners:
    """Tenant and labels of every chunk of a BM25 index, held once for each combination."""

    def __init__(self, ids: Sequence[str], told: pa.Table | pa.RecordBatch) -> None:
        import numpy as np

        kinds: dict[tuple[str, frozenset[str]], int] = {}
        known: dict[str, int] = {}
        for identity, tenant, labels in zip(*(told.column(name).to_pylist() for name in ("id", "tenant", "labels")), strict=True):
            known[identity] = kinds.setdefault((tenant, frozenset(labels)), len(kinds))
        self._kinds = list(kinds)
        # What was deleted since the index was made is nobody's.
        self._of = np.array([known.get(identity, len(kinds)) for identity in ids], dtype=np.int32)

    def mask(self, access: Access) -> Any:
        """Return a 1 for every chunk that may be found, a 0 for the others: an array of float32."""
        import numpy as np

        return np.array([access.allows(*kind) for kind in self._kinds] + [False], dtype=np.float32)[self._of]

    def sees_all(self, access: Access) -> bool:
        """Whether a caller may find every chunk."""
        return all(access.allows(*kind) for kind in self._kinds)

    def places(self, access: Access) -> Any:
        """Return the places of the chunks that may be found."""
        import numpy as np

        return np.flatnonzero(self.mask(access))


def _allowed(access: Access) -> str:
    labels = f" OR array_has_any(labels, [{_quoted(sorted(access.labels))}])" if access.labels else ""
    return f"tenant IN ({_quoted(['', access.tenant])}) AND (array_length(labels) = 0{labels})"


def _quoted(values: Iterable[str]) -> str:
    """Return SQL's literals; DataFusion knows no escape in them but a quote that stands twice."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _rows(documents: Sequence[Document], vectors: Any) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    text, whole = pa.string(), pa.int32()
    kinds = {"page": whole, "position": whole, "labels": pa.list_(text)}
    metadata = [completed(document) for document in documents]
    columns: dict[str, Any] = {
        "id": pa.array([document.id for document in documents], text),
        "vector": pa.FixedSizeListArray.from_arrays(matrix.reshape(-1), matrix.shape[1]),
        "text": pa.array([document.page_content for document in documents], text),
    }
    for name in EMPTY:
        columns[name] = pa.array([told[name] for told in metadata], kinds.get(name, text))
    return pa.table(columns)


def _document(row: dict[str, Any]) -> Document:
    return Document(page_content=row["text"], metadata={name: row[name] for name in EMPTY}, id=row["id"])
