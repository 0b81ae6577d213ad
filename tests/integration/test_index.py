"""A real index: LanceDB, BM25 and the embedding model, over the demo's documents."""

import subprocess
import sys
from pathlib import Path

import pytest

from rag.collection import Collection
from rag.embedded import EmbeddedStore
from rag.embedding import MultilingualE5
from rag.index import Recipe, UnusableIndex, build_index
from rag.plugins import BadPlugin
from rag.ranking import Ranking
from rag.survey import Place

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "rag" / "documents"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    target = tmp_path_factory.mktemp("index")
    survey = Place(DOCUMENTS.parent, (DOCUMENTS.name,)).survey()
    report = build_index(survey, target, Recipe(400, "multilingual-e5-small"), embeddings=MultilingualE5())
    assert sorted(report.read) == ["luggage.txt", "on-board.html", "stations.pdf", "tickets.md", "退票与改签.md"]
    assert report.refused == {}
    return target


def opened(index, **changes):
    settings = {"top_k": 3, "dense_weight": 0.6, "min_score": 0.0005, "max_context_characters": 4000, **changes}
    return Collection(index, embedder="multilingual-e5-small", embeddings=MultilingualE5(), **settings)


@pytest.mark.parametrize(
    ("question", "source", "heading"),
    [
        ("Can I get my money back for a ticket?", "tickets.md", "Tickets > Refunds"),
        ("What does it cost to take a bicycle?", "luggage.txt", ""),
        ("Is there wifi?", "on-board.html", "On board > Internet"),
        ("wheelchair", "stations.pdf", ""),
        ("退票手续费是多少?", "退票与改签.md", "车票 > 退票"),
        ("火车晚点怎么赔偿", "退票与改签.md", "车票 > 晚点赔偿"),
    ],
)
async def test_finds_in_both_languages(index, question, source, heading):
    """Among the two passages that reach the demo's prompt."""
    found = await opened(index, top_k=2).search(question, None)

    assert (source, heading) in [(p.source, p.heading) for p in found]


async def test_a_page_of_a_pdf_is_named(index):
    [best, *_] = await opened(index).search("help with boarding, wheelchair", None)

    assert (best.source, best.page) == ("stations.pdf", 2)


async def test_questions_that_are_no_words(index):
    for question in ("", "???", "x" * 20_000, "'; DROP TABLE chunks; --"):
        assert len(await opened(index).search(question, None)) <= 3


async def test_the_budget_cuts_what_is_over_it(index):
    collection = opened(index, max_context_characters=200)
    context = collection.fit(await collection.search("delay refund ticket", None))

    assert 0 < len(context.text) < 400


async def test_a_score_below_the_threshold_is_left_out(index):
    assert await opened(index, min_score=1.0, dense_weight=0.0).search("quantum chromodynamics", None) == []


async def test_the_best_stand_at_the_edges_where_that_is_wanted(index):
    plain, edges = opened(index, top_k=4, min_score=0), opened(index, ranking=Ranking(order="edges"))
    found = await plain.search("delay refund ticket", None)
    one, two, three, four = (p.text for p in plain.fit(found).passages)

    assert [p.text for p in edges.fit(found).passages] == [one, three, four, two]


@pytest.mark.parametrize("question", ["Which enzyme unwinds the double helix?", "Who wrote Hamlet?", "谁写了红楼梦?"])
async def test_nothing_is_found_for_what_the_documents_do_not_answer(index, question):
    assert await opened(index).search(question, None) == []


def test_a_reranker_that_is_not_there_is_told_when_the_collection_is_opened(index):
    with pytest.raises(BadPlugin, match="cannot be imported"):
        opened(index, ranking=Ranking("no.such:reranker"))


def test_another_embedding_model_is_refused(index):
    with pytest.raises(UnusableIndex, match="was made with"):
        Collection(
            index,
            embedder="other",
            embeddings=MultilingualE5(),
            top_k=1,
            dense_weight=0.5,
            min_score=0,
            max_context_characters=200,
        )


def test_the_store_replaces_and_deletes_by_id(tmp_path):
    store = EmbeddedStore(tmp_path, MultilingualE5())
    store.add_texts(["cats", "dogs"], ids=["a", "b"])
    store.add_texts(["wolves"], ids=["b"])

    assert [d.page_content for d in store.get_by_ids(["b"])] == ["wolves"]
    store.delete(["a"])
    assert [d.id for d in store.similarity_search("cats", k=5)] == ["b"]
    store.delete(["x' OR '1'='1"])
    assert store.count() == 1


def test_two_processes_read_one_index(index):
    code = (
        "import asyncio, sys; sys.path.insert(0, '.'); from pathlib import Path\n"
        "from rag.collection import Collection; from rag.embedding import MultilingualE5\n"
        f"c = Collection(Path({str(index)!r}), embedder='multilingual-e5-small', embeddings=MultilingualE5(), top_k=1,"
        " dense_weight=0.5, min_score=0, max_context_characters=900)\n"
        "print(asyncio.run(c.search('wifi', None))[0].source)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]

    assert [p.communicate(timeout=60)[0].strip() for p in both] == ["on-board.html", "on-board.html"]
