"""Passages that are shown with what stands around them."""

import pytest

from rag.access import Access
from rag.embedded import EmbeddedStore
from rag.index import Recipe, build_index
from rag.ranking import Ranking
from rag.retriever import HybridRetriever
from rag.survey import Place

WORDS = ["apples", "bridges", "candles", "dragons", "engines", "ferries"]
PARAGRAPHS = [f"Paragraph {n} speaks of {word} and of nothing else at all." for n, word in enumerate(WORDS)]
TEXT = "\n\n".join(["# One", *PARAGRAPHS, "# Two", "Another section speaks of gardens."]) + "\n"


@pytest.fixture
def retriever(write, embeddings, tmp_path):
    root = write("a.md", TEXT).parent
    (tmp_path / "index").mkdir()
    build_index(Place(root, (".",)).survey(), tmp_path / "index", Recipe(100, "e"), embeddings=embeddings())

    def made(neighbours, top_k=1):
        store = EmbeddedStore(tmp_path / "index", embeddings())
        access = Access("acme", frozenset())
        # Words alone: these vectors mean nothing.
        return HybridRetriever(store=store, access=access, dense_weight=0, top_k=top_k, ranking=Ranking(neighbours=neighbours))

    return made


def paragraphs(documents):
    return [[int(word) for word in document.page_content.split() if word.isdigit()] for document in documents]


@pytest.mark.parametrize(("neighbours", "found"), [(0, [3]), (1, [2, 3, 4]), (2, [1, 2, 3, 4, 5]), (20, [0, 1, 2, 3, 4, 5])])
def test_neighbours_of_the_same_section_stand_around_a_passage(retriever, neighbours, found):
    assert paragraphs(retriever(neighbours).invoke("dragons")) == [found]


def test_no_text_is_shown_twice(retriever):
    shown = paragraphs(retriever(1, top_k=3).invoke("candles dragons ferries"))

    every = [n for one in shown for n in one]
    assert len(every) == len(set(every))
    assert {2, 3, 5} <= set(every)
