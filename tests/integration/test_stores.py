"""What every store of chunks does, the same for all three: real LanceDB, real PostgreSQL, and Qdrant's client in local mode."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document

from rag.access import Access
from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from rag.servers import open_versions
from rag.store import StoreError

# Qdrant's local mode has no indexes of payload, and says so each time.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
ROOT = Path(__file__).resolve().parents[2]
NAMES = ["acme", "beta", "o'neil", "x' OR '1'='1", "back\\", 'say "no"', "财务", "%", "[']", "a,b"]
WORDS = ["refund", "train", "ticket", "luggage", "车票", "退款"]
ROWS, K, DIMENSIONS = 300, 7, 8
STORES = ["embedded", "postgres", "qdrant"]
PAIRS = {"embedded": 4_000, "postgres": 2_000, "qdrant": 1_000}


def chunk(number, rng):
    told = {
        "tenant": ["", *NAMES][rng.integers(len(NAMES) + 1)],
        "labels": [str(name) for name in rng.choice(NAMES, rng.integers(4), replace=False)],
        "source": f"{number % 17}.md",
        "heading": WORDS[number % 3],
        "page": number,
        "position": number // 17,
        "parent": f"{number % 17}",
        "date": "2026-01-01",
    }
    text = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 30)))
    return Document(page_content=text, metadata=told, id=f"{number:032x}")


def units(rng, rows, dimensions=DIMENSIONS):
    vectors = rng.normal(size=(rows, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def world():
    rng = np.random.default_rng(11)
    return [chunk(number, rng) for number in range(ROWS)], units(rng, ROWS)


class Embedded:
    """Folders, each with a store."""

    def __init__(self, root):
        self.root = root

    def new(self, name):
        return EmbeddedStore(self.root / name, NoEmbeddings())

    again = new

    def elsewhere(self, name):
        return f"EmbeddedStore(Path({str(self.root / name)!r}), NoEmbeddings())"


class Served:
    """Versions on a server."""

    def __init__(self, versions, url=None):
        self.versions, self.url = versions, url

    def new(self, name):
        return self.versions.begin(name, DIMENSIONS)

    def again(self, name):
        return self.versions.open(name, NoEmbeddings())

    def elsewhere(self, name):
        return None if self.url is None else f"open_versions({self.url!r}, 'box-index-c').open({name!r}, NoEmbeddings())"


@pytest.fixture(scope="module")
def places(tmp_path_factory, postgres_url, qdrant):
    from rag.qdrant import QdrantVersions

    with closing(open_versions(postgres_url, "box-index-c")) as postgres:
        yield {
            "embedded": Embedded(tmp_path_factory.mktemp("stores")),
            "postgres": Served(postgres, postgres_url),
            "qdrant": Served(QdrantVersions(qdrant, "box-index-c")),
        }


@pytest.fixture(params=STORES)
def place(request, places):
    return places[request.param]


@pytest.fixture(scope="module", params=STORES)
def filled(request, places):
    store = places[request.param].new("filled")
    documents, vectors = world()
    store.put(documents[:200], vectors[:200])
    store.put(documents[200:], vectors[200:])
    store.finish()
    return store, documents, vectors, PAIRS[request.param]


def allowed(documents, access):
    return [n for n, d in enumerate(documents) if access.allows(d.metadata["tenant"], frozenset(d.metadata["labels"]))]


def test_random_searches_find_the_best_of_what_may_be_seen(filled):
    """Against the scores of all allowed chunks: by words for every pair of question and caller, by vectors for one in ten."""
    store, documents, vectors, pairs = filled
    full = {word: store.matching(word, ROWS, None) for word in WORDS}
    rng = np.random.default_rng(12)
    leaks = 0
    for number in range(pairs):
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
            vector = vectors[rng.integers(ROWS)] + rng.normal(size=DIMENSIONS).astype(np.float32) / 4
            near = store.nearest(vector.tolist(), K, access)
            cosines = np.sort(vectors[may] @ vector / np.linalg.norm(vector))[::-1][:K]
            leaks += len({one.document.id for one in near} - ids)
            assert [one.cosine for one in near] == pytest.approx(cosines.tolist(), abs=1e-5)

    assert leaks == 0


def test_chunks_of_a_section_are_those_that_may_be_seen(filled):
    store, documents, _, _ = filled
    sections = sorted({d.metadata["parent"] for d in documents})[:3]
    for access in (None, Access("acme", frozenset({"beta", "o'neil"})), Access("x' OR '1'='1", frozenset())):
        may = set(range(ROWS)) if access is None else set(allowed(documents, access))
        wanted = {
            d.id
            for n, d in enumerate(documents)
            if n in may and d.metadata["parent"] in sections and d.metadata["position"] in {1, 3}
        }
        assert wanted
        assert {d.id for d in store.of_sections(sections, [1, 3], access)} == wanted
    assert store.of_sections([], [1], None) == store.of_sections(["no' such"], [1], None) == []


def test_who_may_see_little_still_gets_as_many_results(filled):
    store, documents, vectors, _ = filled
    nobody = Access("nobody", frozenset())
    assert K < len(allowed(documents, nobody)) < ROWS / 10

    assert len(store.nearest(vectors[0].tolist(), K, nobody)) == K
    assert len(store.nearest(vectors[0].tolist(), ROWS, None)) == ROWS
    assert store.nearest(vectors[0].tolist(), 1, None)[0].document.id == documents[0].id


def test_everything_comes_back_as_it_was_written(filled):
    store, documents, vectors, _ = filled
    found = {d.id: (d, v) for batch, many in store.batches() for d, v in zip(batch, many, strict=True)}

    assert store.count() == len(found) == ROWS
    for document, vector in zip(documents, vectors, strict=True):
        same, its = found[document.id]
        assert (same.page_content, its.tolist()) == (document.page_content, vector.tolist())
        assert same.metadata == {"language": "", **document.metadata}


@pytest.mark.parametrize("other", STORES[1:])
def test_words_score_the_same_as_in_the_embedded_store(places, filled, other):
    store, _, _, _ = filled
    documents, vectors = world()
    reference = places["embedded"].new(f"reference-{other}")
    reference.put(documents, vectors)
    reference.finish()
    for question in ("refund", "refund refund 车票", "luggage train ticket", "nothing of it", ""):
        assert store.matching(question, ROWS, None) == pytest.approx(reference.matching(question, ROWS, None), rel=1e-5)


def test_what_has_an_id_already_is_replaced_and_what_is_deleted_is_gone(place):
    documents, vectors = world()
    store = place.new("changed")
    store.put(documents[:50], vectors[:50])
    store.put([Document(page_content="zebra", metadata={}, id=documents[0].id)], vectors[60:61])
    store.delete([documents[1].id, "x') OR ('1'='1"])
    store.finish()

    assert store.count() == 49
    assert store.matching("zebra", 5, None).keys() == {documents[0].id}
    assert [d.page_content for d in store.get_by_ids([documents[0].id, documents[1].id])] == ["zebra"]
    [(best, score, vector)] = store.nearest(vectors[60].tolist(), 1, None)
    assert (best.id, score) == (documents[0].id, pytest.approx(1, abs=1e-5))
    assert vector == pytest.approx(vectors[60], abs=1e-5)


def test_it_is_there_when_it_is_opened_again(place):
    documents, vectors = world()
    store = place.new("kept")
    store.put(documents, vectors)
    store.finish()
    again = place.again("kept")

    assert again.matching("退款", K, None) == store.matching("退款", K, None)
    there, here = ([(n.document, n.cosine) for n in one.nearest(vectors[3].tolist(), K, None)] for one in (again, store))
    assert there == here


def test_an_empty_store_finds_nothing(place):
    store = place.new("empty")

    assert (store.count(), list(store.batches()), store.get_by_ids(["a"])) == (0, [], [])
    assert (store.nearest([1.0] * DIMENSIONS, K, None), store.matching("refund", K, None)) == ([], {})


def test_terms_of_any_length_are_found(place):
    store = place.new("long")
    store.put([Document(page_content="x" * 9_000 + " short", metadata={}, id="a")], units(np.random.default_rng(1), 1))
    store.finish()

    assert store.matching("x" * 9_000, K, None).keys() == store.matching("short", K, None).keys() == {"a"}


def test_two_processes_search_one_store(place):
    documents, vectors = world()
    store = place.new("shared")
    store.put(documents, vectors)
    store.finish()
    if (there := place.elsewhere("shared")) is None:
        pytest.skip("Qdrant's local mode locks its folder; a server does not")
    code = (
        "from pathlib import Path\nfrom rag.access import Access\nfrom rag.embedded import EmbeddedStore\n"
        "from rag.embedding import NoEmbeddings\nfrom rag.servers import open_versions\n"
        f"store = {there}\n"
        "access = Access('acme', frozenset({'beta'}))\n"
        "print(sorted(store.matching('refund', 7, access)), "
        f"[n.document.id for n in store.nearest({vectors[0].tolist()}, 7, access)])"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    access = Access("acme", frozenset({"beta"}))
    here = (
        f"{sorted(store.matching('refund', 7, access))} {[n.document.id for n in store.nearest(vectors[0].tolist(), 7, access)]}"
    )

    assert [p.communicate(timeout=60)[0].strip() for p in both] == [here, here]


@pytest.mark.parametrize("kind", ["embedded", "postgres"])
def test_the_approximate_index_finds_what_comparing_all_finds(places, kind):
    """Of many chunks, also where a caller may see one in three hundred of them."""
    rng = np.random.default_rng(5)
    rows = 6_000
    vectors = units(rng, rows)
    documents = [
        Document(page_content="t", metadata={"tenant": "rare" if n % 300 == 0 else "most"}, id=f"{n:032x}") for n in range(rows)
    ]
    store = places[kind].new("many")
    store.put(documents, vectors)
    store.finish()
    found = best = 0
    for asked in units(rng, 50):
        for tenant in ("most", "rare"):
            near = store.nearest(asked.tolist(), 10, Access(tenant, frozenset()))
            assert len(near) == 10
            may = [n for n, d in enumerate(documents) if d.metadata["tenant"] == tenant]
            top = {documents[may[i]].id for i in np.argsort(-(vectors[may] @ asked))[:10]}
            assert {one.document.metadata["tenant"] for one in near} == {tenant}
            found += len(top & {one.document.id for one in near})
            best += 10

    assert found / best > 0.95


def test_postgres_refuses_a_nul_and_hides_nothing_from_names_with_one(places):
    store = places["postgres"].new("nul")
    with pytest.raises(StoreError, match="NUL"):
        store.put([Document(page_content="a\0b", metadata={}, id="a")], [[1.0] + [0.0] * 7])
    store.put([Document(page_content="text", metadata={}, id="a")], [[1.0] + [0.0] * 7])
    store.finish()

    assert store.matching("text", 1, Access("a\0", frozenset({"\0"}))).keys() == {"a"}


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "http://127.0.0.1:1"])
def test_a_server_that_is_not_there(url):
    with pytest.raises(StoreError, match="see that it runs"):
        open_versions(url, "box-index-c")
