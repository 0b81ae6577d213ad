"""A search finds what its caller may see, all of it, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from rag.access import Access
from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from rag.lexical import Bm25

NAMES = ["acme", "beta", "o'neil", "x' OR '1'='1", "back\\", 'say "no"', "财务", "%", "[']", "a,b"]
WORDS = ["refund", "train", "ticket", "luggage", "车票", "退款"]
ROWS, PAIRS, K = 300, 10_000, 7


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
    return store, documents, vectors


def allowed(documents, access):
    return [n for n, d in enumerate(documents) if access.allows(d.metadata["tenant"], frozenset(d.metadata["labels"]))]


def test_ten_thousand_searches_find_the_best_of_what_may_be_seen(world, tmp_path):
    """Compared with every allowed chunk's score, for random callers; every hundredth pair also asks for the vectors."""
    store, documents, vectors = world
    Bm25.build(tmp_path / "words", [d.page_content for d in documents], [d.id for d in documents])
    words = Bm25.open(tmp_path / "words")
    full = {word: words.search(word, ROWS) for word in WORDS}
    rng = np.random.default_rng(12)
    leaks = 0
    for number in range(PAIRS):
        labels = frozenset(str(name) for name in rng.choice(NAMES, rng.integers(len(NAMES)), replace=False))
        access = Access(str(rng.choice([*NAMES, "default"])), labels)
        may = allowed(documents, access)
        ids = {documents[n].id for n in may}
        word = WORDS[rng.integers(len(WORDS))]
        found = store.matching(word, K, access)
        best = sorted((score for identity, score in full[word].items() if identity in ids), reverse=True)[:K]
        leaks += len(set(found) - ids)
        assert sorted(found.values(), reverse=True) == pytest.approx(best, rel=1e-5)
        if number % 10 == 0:
            vector = vectors[rng.integers(ROWS)] + rng.normal(size=8).astype(np.float32) / 4
            near = store.nearest(vector.tolist(), K, access)
            cosines = np.sort(vectors[may] @ vector / np.linalg.norm(vector))[::-1][:K]
            leaks += len({d.id for d, _ in near} - ids)
            assert [score for _, score in near] == pytest.approx(cosines.tolist(), abs=1e-5)

    assert leaks == 0


@settings(deadline=None, max_examples=60)
@given(tenant=st.text(max_size=8), labels=st.frozensets(st.text(max_size=8), max_size=4))
def test_names_of_any_characters_are_names_and_no_query(world, tenant, labels):
    store, documents, _ = world
    access = Access(tenant, labels)
    ids = {documents[n].id for n in allowed(documents, access)}

    assert {d.id for d, _ in store.nearest([1.0] + [0.0] * 7, ROWS, access)} == ids
    assert set(store.matching(" ".join(WORDS), ROWS, access)) == ids


def test_who_may_see_little_still_gets_as_many_results(world):
    store, documents, vectors = world
    nobody = Access("nobody", frozenset())
    may = allowed(documents, nobody)
    assert K < len(may) < ROWS / 10

    assert len(store.nearest(vectors[0].tolist(), K, nobody)) == K
    assert store.nearest(vectors[0].tolist(), ROWS, None)[0][0].id == documents[0].id
    assert len(store.nearest(vectors[0].tolist(), ROWS, None)) == ROWS
