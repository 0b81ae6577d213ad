"""The rows of a finished index in one file that is mapped into memory: chunks by place, vectors as they were written.

A page of it is read when it is needed and shared by all processes that read the index. LanceDB's files have no such access: to
take fifty rows out of them costs more than to search them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID = "_rowid"
_VERSION = b"version"
_MANY = 8


class Rows:
    """Rows in the order of writing: `ids`, `told` (the store's columns), and `vectors`: float32 (rows, dimensions)."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.told = batch.drop_columns(["vector", ROW_ID])
        self._row_ids = batch.column(ROW_ID).to_numpy()
        self.vectors: Any = batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1)
        self.ids: list[str] = batch.column("id").to_pylist()
        self._places = dict(zip(self.ids, range(len(self.ids)), strict=True))

    @staticmethod
    def write(path: Path, table: pa.Table, version: int) -> None:
        """Write a table with vectors and row ids, in the order of these; `version` is the store's."""
        import pyarrow as pa

        # One batch, so that a row is where its number says; its strings may be over 2 GiB together.
        large = [pa.field(one.name, pa.large_string() if one.type == pa.string() else one.type) for one in table.schema]
        whole = table.sort_by(ROW_ID).cast(pa.schema(large, {_VERSION: str(version)})).combine_chunks()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
            writer.write_table(whole, max_chunksize=max(1, whole.num_rows))

    @classmethod
    def open(cls, path: Path, version: int) -> Self | None:
        """Map the file; None where there is none, or it is of another version of the store."""
        import pyarrow as pa

        if not path.is_file():
            return None
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        told = reader.schema.metadata or {}
        return cls(reader.get_batch(0)) if told.get(_VERSION) == str(version).encode() and reader.num_record_batches else None

    def at(self, places: Any) -> list[dict[str, Any]]:
        """Return the rows at these places, without vectors."""
        return self.told.take(places).to_pylist()

    def with_ids(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows with these ids, as far as there are any."""
        places = [self._places[identity] for identity in ids if identity in self._places]
        return self.at(places) if places else []

    def places_of(self, row_ids: Any) -> Any:
        """Return the places of rows by the store's row ids, which are all here."""
        import numpy as np

        return np.searchsorted(self._row_ids, row_ids)

    def nearest(self, vector: Sequence[float], k: int, places: Any = None) -> tuple[Any, Any]:
        """Return places and cosine similarities of the k rows nearest to a vector, best first, of all or of those at `places`."""
        import numpy as np

        asked = np.asarray(vector, dtype=np.float32)
        asked /= np.linalg.norm(asked) or 1.0
        if places is not None and _MANY * len(places) < len(self.ids):
            cosines = self.vectors[places] @ asked
        else:  # to copy many rows costs more than to compare them all
            cosines = self.vectors @ asked
            cosines = cosines if places is None else cosines[places]
        best = np.argpartition(-cosines, k - 1)[:k] if k < len(cosines) else np.arange(len(cosines))
        best = best[np.argsort(-cosines[best], kind="stable")]
        return best if places is None else places[best], cosines[best]
