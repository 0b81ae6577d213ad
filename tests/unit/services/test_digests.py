"""Digests of what the model store holds."""

import hashlib

import numpy as np
import pytest
from langchain_core.documents import Document

from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from services.digests import DigestCache, file_digests, rows_digest, stored_files


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "model.yaml").write_text("creation_time: now\n")
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights.bin").write_bytes(b"w" * 5_000_000)
    return folder


def test_every_file_counts_but_bentomls_card(model):
    told = []
    found = file_digests(model, stored_files(model), lambda done, total: told.append((done, total)))

    assert list(found) == ["config.json", "part/weights.bin"]
    assert found["part/weights.bin"] == hashlib.sha256(b"w" * 5_000_000).hexdigest()
    assert told[-1] == (5_000_002, 5_000_002)


def test_what_did_not_change_is_not_read_again(model, tmp_path):
    weights, kept = model / "part" / "weights.bin", tmp_path / "kept" / "digests.json"
    cache = DigestCache(kept)
    first = file_digests(model, [weights], cache=cache)
    cache.save()
    again = DigestCache(kept)

    assert again.get(weights) == first["part/weights.bin"]

    weights.write_bytes(b"v" * 5_000_000)

    assert again.get(weights) is None
    assert file_digests(model, [weights], cache=again) != first


def test_a_broken_cache_is_an_empty_one(model, tmp_path):
    (tmp_path / "digests.json").write_text('{"half')

    assert DigestCache(tmp_path / "digests.json").get(model / "config.json") is None


def index(folder, order, text="luggage is free"):
    store = EmbeddedStore(folder, NoEmbeddings())
    texts = {"a": text, "b": "seats are numbered"}
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    documents = [Document(page_content=texts[one], id=one) for one in order]
    store.put(documents, np.array([vectors[one] for one in order], dtype=np.float32))
    store.finish()
    return folder


def test_an_index_is_judged_by_its_rows_whatever_their_order(tmp_path):
    one, other = index(tmp_path / "one", "ab"), index(tmp_path / "other", "ba")

    assert rows_digest(one) == rows_digest(other)
    assert rows_digest(one) != rows_digest(index(tmp_path / "third", "ab", "luggage costs 9"))
    assert not any(path.is_relative_to(one / "lance") for path in stored_files(one))


def test_what_is_no_index_has_no_rows(model):
    assert rows_digest(model) is None
