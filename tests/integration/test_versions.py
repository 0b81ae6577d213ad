"""Versions of an index on a server: built beside, switched to, kept; and indexes that move without being embedded again."""

import asyncio
import hashlib
from contextlib import closing

import psycopg
import pytest

from rag.access import Access
from rag.collection import Collection
from rag.embedded import EmbeddedStore
from rag.embedding import CallableEmbeddings, NoEmbeddings
from rag.index import Recipe, UnusableIndex, build_index, read_index
from rag.moving import content_digest, fetch, publish
from rag.qdrant import QdrantVersions
from rag.servers import open_versions
from rag.store import StoreError
from rag.survey import Place

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
ANYONE = Access("default", frozenset())


def vector(text):
    numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:8]]
    length = sum(number**2 for number in numbers) ** 0.5
    return [number / length for number in numbers]


class Hashed(NoEmbeddings):
    def embed_documents(self, texts):
        return [vector(text) for text in texts]


@pytest.fixture
def index(tmp_path):
    def build(name, text, embedder="e"):
        docs = tmp_path / f"docs-{name}"
        docs.mkdir()
        (docs / "a.md").write_text(f"# Shop\n{text}\n# Staff\nText for all.\n")
        (docs / "b.jsonl").write_text('{"text": "Secret shop plans.", "tenant": "acme", "labels": ["board"]}\n')
        target = tmp_path / name
        target.mkdir()
        build_index(Place(tmp_path, (docs.name,)).survey(), target, Recipe(200, embedder), embeddings=Hashed())
        return target

    return build


@pytest.fixture(params=["postgres", "qdrant"])
def versions(request, postgres_url, qdrant):
    name = "box-index-" + request.node.name.replace("[", "-").rstrip("]")
    opened = open_versions(postgres_url, name) if request.param == "postgres" else QdrantVersions(qdrant, name)
    yield opened
    if request.param == "postgres":
        opened.close()


def opened(versions, embedder="e"):
    async def embed(text, _kind):
        return vector(text)

    return Collection(
        versions, embedder=embedder, embeddings=CallableEmbeddings(embed), top_k=5, dense_weight=0, min_score=0,
        max_context_characters=900,
    )  # fmt: skip


def nothing(_done, _total):
    pass


async def test_a_version_is_built_beside_and_searches_follow_the_pointer(versions, index):
    publish(index("one", "It opens at nine."), versions, "1", nothing)
    with pytest.raises(UnusableIndex, match="rag ingest"):
        opened(versions)
    versions.switch("1")
    collection = opened(versions)
    [first, *_] = await collection.search("It opens at nine", ANYONE)
    publish(index("two", "It opens at ten."), versions, "2", nothing)
    [still, *_] = await collection.search("It opens at ten", ANYONE)
    versions.switch("2")
    [after, *_] = await collection.search("It opens at ten", ANYONE)
    versions.switch("1")
    [back, *_] = await collection.search("It opens at ten", ANYONE)

    assert [p.text for p in (first, still, after, back)] == [
        "It opens at nine.",
        "It opens at nine.",
        "It opens at ten.",
        "It opens at nine.",
    ]
    assert (after.index, back.index) == (f"{versions.collection}:2", f"{versions.collection}:1")
    assert [(v.name, v.chunks, v.current) for v in versions.all()] == [("1", 3, True), ("2", 3, False)]
    assert collection.fit([after]).index == after.index
    versions.remove("2")
    assert [v.name for v in versions.all()] == ["1"]
    assert versions.card("2") is None


async def test_access_holds_on_a_server_too(versions, index):
    publish(index("one", "It opens at nine."), versions, "1", nothing)
    versions.switch("1")
    collection = opened(versions)
    question = "secret shop plans"

    for access in (ANYONE, Access("acme", frozenset()), Access("beta", frozenset({"board"}))):
        assert all("Secret" not in p.text for p in await collection.search(question, access))
    assert (await collection.search(question, Access("acme", frozenset({"board"}))))[0].text == "Secret shop plans."


def test_another_embedding_model_is_refused(versions, index):
    publish(index("one", "text"), versions, "1", nothing)
    versions.switch("1")

    with pytest.raises(UnusableIndex, match="was made with 'e'"):
        opened(versions, "other")


def test_an_index_moves_there_and_back_whole(versions, index, tmp_path):
    folder = index("one", "It opens at nine.")
    told = []
    publish(folder, versions, "1", lambda done, total: told.append((done, total)))
    back = tmp_path / "back"
    fetch(versions, "1", back, nothing)

    assert told[-1] == (3, 3)
    assert read_index(back) == read_index(folder)
    here, there = EmbeddedStore(folder, NoEmbeddings()), EmbeddedStore(back, NoEmbeddings())
    assert content_digest(here) == content_digest(there) == content_digest(versions.open("1", NoEmbeddings()))
    assert here.matching("shop nine", 5, None) == pytest.approx(there.matching("shop nine", 5, None))


def test_what_was_half_copied_is_no_version_and_is_begun_anew(versions, index, monkeypatch):
    folder = index("one", "It opens at nine.")
    with monkeypatch.context() as patched:
        patched.setattr("rag.moving.content_digest", lambda store: object())
        with pytest.raises(StoreError, match="not what was sent"):
            publish(folder, versions, "1", nothing)
    assert (versions.all(), versions.card("1"), versions.current()) == ([], None, None)

    publish(folder, versions, "1", nothing)
    assert [(v.name, v.chunks) for v in versions.all()] == [("1", 3)]


def test_collections_on_one_server_keep_apart(postgres_url, index):
    folder = index("one", "text")
    with closing(open_versions(postgres_url, "a-index-x")) as one, closing(open_versions(postgres_url, "b-index-x")) as other:
        publish(folder, one, "1", nothing)
        publish(folder, other, "1", nothing)
        one.remove("1")

        assert (one.all(), [v.name for v in other.all()]) == ([], ["1"])
        assert other.open("1", NoEmbeddings()).count() == 3
        with pytest.raises(StoreError):
            one.switch("1")


async def test_a_role_that_may_only_read_can_search(postgres_url, index):
    with closing(open_versions(postgres_url, "box-index-read")) as versions, psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA ekiben TO reader")
        connection.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA ekiben GRANT SELECT ON TABLES TO reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA ekiben TO reader")
        connection.commit()
        publish(index("one", "It opens at nine."), versions, "1", nothing)
        versions.switch("1")
    with closing(open_versions(postgres_url.replace("postgres:@", "reader@"), "box-index-read")) as reading:
        assert (await opened(reading).search("opens", ANYONE))[0].text == "It opens at nine."
        with pytest.raises(StoreError, match="permission denied"):
            reading.switch("1")


def test_searches_during_a_switch_are_answered(postgres_url, index):
    """Many at once, while the pointer goes to and fro: each finds all of one version."""
    texts = {"1": "It opens at nine.", "2": "It opens at ten."}
    with closing(open_versions(postgres_url, "box-index-busy")) as versions:
        for name, text in texts.items():
            publish(index(name, text), versions, name, nothing)
        versions.switch("1")
        collection = opened(versions)

        async def switching():
            for _ in range(20):
                for name in texts:
                    await asyncio.to_thread(versions.switch, name)

        async def searching():
            return [await collection.search("It opens at", ANYONE) for _ in range(30)]

        async def both():
            return await asyncio.gather(switching(), *(searching() for _ in range(4)))

        _, *found = asyncio.run(both())
    for passages in (p for some in found for p in some):
        [version] = {p.index.rpartition(":")[2] for p in passages}
        assert texts[version] in {p.text for p in passages}
