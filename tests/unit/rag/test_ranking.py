"""Fusion, the lexical reranker, diversity, and rerankers from outside."""

import dataclasses

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document

from rag.plugins import BadPlugin
from rag.ranking import Candidates, Ranking, apart, diversify, feedback, fuse, load_reranker, rank, reranked, scale, trust

TEXTS = {
    "a": "The station opens at six. Bicycles travel for ten euros on every train.",
    "b": "Ten trains travel every hour. Six euros is what a sandwich costs. Bicycles are sold elsewhere.",
    "c": "Dogs need a muzzle.",
}


def candidates(cosines, words):
    documents = {name: Document(page_content=TEXTS[name], metadata={"heading": ""}, id=name) for name in {*cosines, *words}}
    return Candidates(documents, cosines, words)


class Backwards(BaseDocumentCompressor):
    def compress_documents(self, documents, query, callbacks=None):
        scored = [document.model_copy(update={"metadata": {"relevance_score": 0.25}}) for document in documents]
        return scored[::-1][:2]


def test_each_list_is_scaled_by_itself():
    scaled = scale(candidates({"a": 0.9, "b": 0.8}, {"b": 12.0, "c": 6.0}))

    assert scaled == {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.0, 0.5)}
    assert fuse(scaled, 0.6) == ["a", "b", "c"]
    assert fuse(scaled, 0.0) == ["b", "c", "a"]


def test_words_are_trusted_as_far_as_one_chunk_stands_out_by_them():
    alone = {"a": (0.1, 1.0), **{str(number): (1.0, 0.3) for number in range(5)}}
    among = {"a": (0.1, 1.0), **{str(number): (1.0, 0.9) for number in range(5)}}

    assert trust(0.5, apart(alone)) == (0.5, 0.1)
    dense_weight, lexical = trust(0.5, apart(among))
    assert 0.6 < dense_weight <= 0.7
    assert lexical < 0.05
    assert [trust(weight, apart(among))[0] for weight in (0.0, 1.0)] == [0.0, 1.0]


def test_what_either_list_has_first_stays_in_sight():
    documents = {
        str(number): Document(page_content="bicycle euros", metadata={"heading": ""}, id=str(number)) for number in range(9)
    }
    documents["8"] = Document(page_content="Nothing of it.", metadata={"heading": ""}, id="8")
    cosines = {str(number): 0.9 - number / 100 for number in range(8)}
    found = Candidates(documents, cosines, {**{str(number): 9.9 for number in range(8)}, "8": 10.0})

    ranked = [one.document.id for one in rank(found, "bicycle euros", dense_weight=0.5, rerank=True)]

    assert ranked[:5] == ["0", "1", "2", "3", "8"]
    assert sorted(ranked) == sorted(documents)
    assert "8" not in [one.document.id for one in rank(found, "bicycle euros", dense_weight=0.5, rerank=False)][:5]


def test_nothing_found_is_no_error():
    assert rank(candidates({}, {}), "what?", dense_weight=0.5, rerank=True) == []


def test_a_question_without_a_term_keeps_the_order_of_the_vectors():
    ranked = rank(candidates({"c": 0.9, "b": 0.8, "a": 0.7}, {}), "???", dense_weight=0.5, rerank=True)

    assert ranked[0].document.id == "c"


def test_the_reranker_prefers_terms_that_stand_together():
    """Both searches find a and b alike; only a says it in one sentence."""
    found = candidates({"a": 0.85, "b": 0.85, "c": 0.8}, {"a": 5.0, "b": 5.0, "c": 1.0})
    question = "bicycles, ten euros, train"

    assert rank(found, question, dense_weight=0.5, rerank=True)[0].document.id == "a"
    assert [one.document.id for one in rank(found, question, dense_weight=0.5, rerank=False)] == ["a", "b", "c"]


def test_a_passage_that_answers_is_estimated_higher():
    found = candidates({"a": 0.88, "c": 0.78}, {"a": 5.0})
    answers, other = rank(found, "bicycles for ten euros on every train", dense_weight=0.5, rerank=True)

    assert 0 <= other.relevance < answers.relevance <= 1


def test_a_copy_comes_last_where_diversity_counts():
    found = candidates({"a": 0.9, "b": 0.85, "c": 0.8}, {})
    copy = found.documents["a"].model_copy(update={"id": "copy"})
    twice = Candidates({**found.documents, "copy": copy}, {**found.cosines, "copy": 0.899}, {})
    ranked = rank(twice, "bicycles", dense_weight=1.0, rerank=False)

    assert [one.document.id for one in ranked[:2]] == ["a", "copy"]
    assert [one.document.id for one in diversify(ranked, 0.6, 4)][-1] == "copy"
    assert [one.document.id for one in diversify(ranked, 0.0, 4)] == [one.document.id for one in ranked]


def test_a_reranker_from_outside_orders_drops_and_tells_its_score():
    ranked = rank(candidates({"a": 0.9, "b": 0.85, "c": 0.8}, {}), "bicycles", dense_weight=1.0, rerank=False)
    left = reranked(Backwards(), ranked, "bicycles")

    assert [(one.document.id, one.relevance) for one in left] == [("c", 0.25), ("b", 0.25)]


@pytest.mark.parametrize(
    ("path", "message"),
    [("no.such.module:x", "cannot be imported"), ("json:none", "cannot be imported"), ("builtins:dict", "returns a dict")],
)
def test_a_reranker_that_is_none_is_refused(path, message):
    with pytest.raises(BadPlugin, match=message):
        load_reranker(path)


def test_a_path_names_what_makes_the_reranker(monkeypatch):
    monkeypatch.setattr("json.made_for_a_test", Backwards, raising=False)

    assert isinstance(Ranking("json:made_for_a_test").reranker, Backwards)
    assert Ranking("lexical").reranker is None


def test_where_many_chunks_have_the_words_those_like_the_best_come_first():
    """Of two chunks with the same scores, the one that says what the best five say is the better guess."""
    names = [f"good-{number}" for number in range(5)]
    vectors = {name: [1.0, 0.1 * number] for number, name in enumerate(names)} | {"like": [1.0, 0.2], "unlike": [0.0, 1.0]}
    cosines = dict.fromkeys(names, 0.9) | {"like": 0.8, "unlike": 0.8, "far": 0.5}
    found = Candidates(
        {name: Document("gold", id=name) for name in cosines}, cosines, dict.fromkeys([*names, "like", "unlike"], 3.0), vectors
    )
    without = dataclasses.replace(found, vectors={})
    apart_by_one = dataclasses.replace(found, words={**found.words, "good-0": 30.0})

    def place(among, name, dense_weight=0.5):
        return [one.document.id for one in rank(among, "gold", dense_weight=dense_weight, rerank=True)].index(name)

    assert place(found, "like") < place(found, "unlike")
    values = {one.document.id: one.order for one in rank(without, "gold", dense_weight=0.5, rerank=True)}
    assert values["like"] == values["unlike"]
    for among, weight in ((apart_by_one, 0.5), (found, 0.0), (found, 1.0)):
        values = {one.document.id: one.order for one in rank(among, "gold", dense_weight=weight, rerank=True)}
        assert values["like"] == values["unlike"]


def test_feedback_needs_five_vectors_that_differ():
    order = {str(number): 1.0 - number / 10 for number in range(6)}

    assert feedback(order, {str(number): [1.0, 0.0] for number in range(4)}) == {}
    assert feedback(order, {str(number): [1.0, 0.0] for number in range(6)}) == {}
    likeness = feedback(order, {**{str(number): [1.0, 0.0] for number in range(5)}, "5": [0.0, 1.0]})
    assert (likeness["0"], likeness["5"]) == (1.0, 0.0)
