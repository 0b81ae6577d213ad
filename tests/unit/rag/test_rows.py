"""Rows in a mapped file are the table's, in the order of its row ids, and are of one version of it."""

import numpy as np
import pyarrow as pa
import pytest

from rag.rows import ROW_ID, Rows

ROWS = 40


@pytest.fixture
def table():
    vectors = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.random.default_rng(4).permutation(ROWS)
    return vectors, pa.table({
        "id": [f"id{n}" for n in order],
        "labels": [[str(n)] for n in order],
        "vector": pa.FixedSizeListArray.from_arrays(vectors[order].reshape(-1), 4),
        ROW_ID: pa.array(order * 10, pa.uint64()),
    })  # fmt: skip


@pytest.fixture
def rows(table, tmp_path):
    Rows.write(tmp_path / "rows", table[1], 7)
    found = Rows.open(tmp_path / "rows", 7)
    assert found is not None
    return found


def test_rows_are_in_the_order_of_their_row_ids(rows, table):
    assert rows.ids == [f"id{n}" for n in range(ROWS)]
    assert rows.vectors.tolist() == table[0].tolist()
    assert rows.at([3, 1]) == [{"id": "id3", "labels": ["3"]}, {"id": "id1", "labels": ["1"]}]
    assert [row["id"] for row in rows.with_ids(["id5", "no such", "id2"])] == ["id5", "id2"]
    assert rows.with_ids(["no such"]) == []
    assert rows.places_of([50, 0, 390]).tolist() == [5, 0, 39]


@pytest.mark.parametrize("places", [None, np.arange(0, ROWS, 2), np.array([4, 9, 30]), np.array([], int)])
def test_the_nearest_are_those_of_comparing_all(rows, table, places):
    asked = [3.0, -1.0, 2.0, 0.5]
    cosines = table[0] @ np.array(asked, np.float32) / np.linalg.norm(asked)
    among = range(ROWS) if places is None else places.tolist()
    best = sorted(among, key=lambda place: -cosines[place])[:5]
    found, scores = rows.nearest(asked, 5, places)

    assert found.tolist() == best
    assert scores.tolist() == pytest.approx([cosines[place] for place in best], abs=1e-6)


def test_rows_of_another_version_are_not_opened(table, tmp_path):
    Rows.write(tmp_path / "rows", table[1], 7)

    assert Rows.open(tmp_path / "rows", 8) is None
    assert Rows.open(tmp_path / "none", 7) is None
