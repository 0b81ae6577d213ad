"""A retriever from outside in the place of an index."""

import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from rag import plugged
from rag.access import Access
from rag.plugged import PluggedCollection
from rag.plugins import BadPlugin

STAFF = Access("acme", frozenset({"staff"}))


class Told(BaseRetriever):
    """Finds what it was given, or does what it was told."""

    access: Any
    finds: Any = ()

    def _get_relevant_documents(self, query, *, run_manager):
        return self.finds(query, self.access) if callable(self.finds) else list(self.finds)


@pytest.fixture
def collection(monkeypatch):
    def collection(finds=(), factory=None, **fields):
        module = ModuleType("a_retriever")
        module.made = factory or (lambda access: Told(access=access, finds=finds))
        monkeypatch.setitem(sys.modules, "a_retriever", module)
        settings = {"top_k": 2, "min_score": 0.0, "max_context_characters": 200, "deadline_ms": 5000}
        return PluggedCollection("a_retriever:made", **settings | fields)

    return collection


def document(text, **metadata):
    return Document(text, metadata=metadata)


async def test_what_it_finds_becomes_passages_in_its_order(collection):
    finds = [document("One.", source="a.md", page=3, heading="A", score=0.2), document("Two.", title="T", relevance_score=0.9)]
    opened = collection([*finds, document("Three.")], top_k=5)
    one, two, three = await opened.search("q", STAFF)

    assert (one.text, one.source, one.page, one.heading, one.score) == ("One.", "a.md", 3, "A", 0.2)
    assert (two.source, two.page, two.heading, two.score) == ("a_retriever:made", 0, "T", 0.9)
    assert three.score == 1 / 3
    assert opened.fit([one, two]).text == "[1] A: One.\n\n[2] T: Two."
    assert [one.text for one in await opened.search("q", STAFF, 1)] == ["One."]


async def test_it_is_made_for_the_caller(collection):
    asked = []

    def finds(query, access):
        asked.append((query, access))
        return [document("found")]

    opened = collection(finds)
    await opened.search("q", STAFF)
    await opened.search("p", None)

    assert asked == [("q", STAFF), ("p", None)]


async def test_what_says_that_it_is_for_others_is_left_out(collection):
    finds = [
        document("of others", tenant="globex"), document("of hr", tenant="acme", labels=["hr"]), document("hr", labels="hr"),
        document("mine", tenant="acme", labels=["staff", "hr"]), document("everybody's"), document(" "),
    ]  # fmt: skip
    opened = collection(finds, top_k=9)

    assert [one.text for one in await opened.search("q", STAFF)] == ["mine", "everybody's"]
    assert len(await opened.search("q", None)) == 5


async def test_a_score_below_the_threshold_is_left_out_and_the_budget_holds(collection):
    opened = collection([document("a" * 150, score=0.9), document("b" * 150, score=0.8), document("c", score=0.1)], min_score=0.5)
    found = await opened.search("q", STAFF, 3)

    assert [one.score for one in found] == [0.9, 0.8]
    assert [one.text[0] for one in opened.fit(found).passages] == ["a"]


@pytest.mark.parametrize(
    ("finds", "told"),
    [
        (lambda *_: 1 / 0, "failed: ZeroDivisionError"),
        (lambda *_: sys.exit(1), "failed: SystemExit"),
        (lambda *_: None, "must return a list of LangChain Documents"),
        (lambda *_: ["text"], "must return a list of LangChain Documents"),
        (lambda *_: [document("x", score="high")], "no finite number: 'high'"),
        (lambda *_: [document("x", score=float("nan"))], "no finite number: nan"),
    ],
)
async def test_a_retriever_that_fails_is_told(collection, finds, told):
    with pytest.raises(BadPlugin, match=told):
        await collection(finds).search("q", STAFF)


class WithoutAccess(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return []


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (WithoutAccess, "no field `access`, so it would find the same for everybody"),
        (WithoutAccess(), "is a WithoutAccess; name a function"),
        (lambda: None, "cannot be called with access= alone"),
        (lambda access, more: None, "cannot be called with access= alone"),
        ("text", "is a str; name a function"),
    ],
)
def test_what_cannot_know_its_caller_is_refused_when_it_is_opened(collection, factory, told):
    with pytest.raises(BadPlugin, match=told):
        collection(factory=factory)


async def test_a_factory_that_makes_none(collection):
    with pytest.raises(BadPlugin, match="returns a list, and not a LangChain BaseRetriever"):
        await collection(factory=lambda access: []).search("q", STAFF)


async def test_one_that_hangs_is_left_to_itself_and_the_others_go_on(collection, monkeypatch):
    monkeypatch.setattr(plugged, "MOST_AT_ONCE", 2)
    free, hung = threading.Event(), []

    def finds(query, _access):
        if query == "hang":
            hung.append(threading.current_thread())
            free.wait(60)
        return [document("found")]

    opened = collection(finds, deadline_ms=50)
    with pytest.raises(BadPlugin, match="did not answer in 50 ms"):
        await opened.search("hang", STAFF)
    opened._deadline_ms = 60_000
    assert len(await opened.search("q", STAFF)) == 1
    opened._deadline_ms = 50
    with pytest.raises(BadPlugin, match="did not answer"):
        await opened.search("hang", STAFF)
    with pytest.raises(BadPlugin, match="2 searches of it are under way"):
        await opened.search("q", STAFF)
    assert all(thread.daemon for thread in hung)

    free.set()
    for thread in hung:
        thread.join()
    opened._deadline_ms = 60_000
    assert len(await opened.search("q", STAFF)) == 1
