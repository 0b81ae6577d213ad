"""A search finds what its caller may see, all of it, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from rag.access import Access
from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings

NAMES = ["acme", "beta", "o'neil", "x' OR '1'='1", "back\\", 'say "no"', "财务", "%", "[']", "a,b"]
WORDS = ["refund", "train", "ticket", "luggage", "车票", "退款"]
ROWS = 60


def chunk(number, rng):
    told = {
        "tenant": ["", *NAMES][rng.integers(len(NAMES) + 1)],
        "labels": [str(name) for name in rng.choice(NAMES, rng.integers(4), replace=False)],
        "heading": "",
    }
    text = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 30)))
    return Document(page_content=text, metadata=told, id=f"{number:032x}")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    rng = np.random.default_rng(11)
    documents = [chunk(number, rng) for number in range(ROWS)]
    vectors = rng.normal(size=(ROWS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = EmbeddedStore(tmp_path_factory.mktemp("store"), NoEmbeddings())
    store.put(documents, vectors)
    store.finish()
    return store, documents


def allowed(documents, access):
    return [n for n, d in enumerate(documents) if access.allows(d.metadata["tenant"], frozenset(d.metadata["labels"]))]


@settings(deadline=None, max_examples=60)
@given(tenant=st.text(max_size=8), labels=st.frozensets(st.text(max_size=8), max_size=4))
def test_names_of_any_characters_are_names_and_no_query(world, tenant, labels):
    store, documents = world
    access = Access(tenant, labels)
    ids = {documents[n].id for n in allowed(documents, access)}

    assert {near.document.id for near in store.nearest([1.0] + [0.0] * 7, ROWS, access)} == ids
    assert set(store.matching(" ".join(WORDS), ROWS, access)) == ids
