"""From a conversation to the passages of its prompt."""

import json

import pytest

from rag.context import Passage
from services.errors import EngineUnavailable
from services.protocol import ChatRequest, parse

BIKES = Passage("A bicycle costs 11 euros.", "a.md", 0, "Bicycles", 0.9)
DOGS = Passage("Dogs travel free.", "a.md", 1, "Dogs", 0.4)
TURNS = [("user", "What does a bicycle cost?"), ("assistant", "11 euros."), ("user", "And for a child?")]


def chat(turns=TURNS, **fields):
    messages = [{"role": role, "content": text} for role, text in turns]
    return parse(ChatRequest, json.dumps({"model": "ask", "messages": messages, **fields}).encode())


@pytest.fixture
def searching(pipeline, papers):
    """Let the route search in a certain way."""

    def set_up(**how):
        papers.passages = [BIKES]
        routes = pipeline.routes._routes
        routes["ask"] = routes["ask"].__class__(**{**vars(routes["ask"]), "search": routes["ask"].search.model_copy(update=how)})
        return pipeline

    return set_up


def words(papers):
    return [question for question, _access in papers.asked]


async def test_a_follow_up_is_searched_with_the_question_before(searching, papers):
    await searching().answer(chat())

    assert words(papers) == ["What does a bicycle cost?\nAnd for a child?"]


async def test_follow_ups_off(searching, papers):
    await searching(follow_ups="off").answer(chat())

    assert words(papers) == ["And for a child?"]


async def test_a_question_is_rewritten_by_the_base_model(searching, papers, engine):
    engine.answers = ["What does a bicycle cost for a child?"]
    await searching(follow_ups="rewrite").answer(chat())

    assert words(papers) == ["What does a bicycle cost for a child?"]
    assert engine.asked[0][1]["model"] == "tiny"
    assert engine.asked[0][1]["messages"][1]["content"].startswith("user: What does a bicycle cost?\nassistant: 11 euros.")
    assert len(engine.asked) == 2  # the question, and the answer


async def test_other_wordings_and_an_imagined_answer_are_searched_for_too(searching, papers, engine):
    engine.answers = ["1. Price of a bicycle\n2. Bicycle fee\n3. one too many", "A bicycle costs five euros."]
    await searching(variants=2, imagine=True).answer(chat(TURNS[:1]))

    assert words(papers) == ["What does a bicycle cost?", "Price of a bicycle", "Bicycle fee", "A bicycle costs five euros."]


@pytest.mark.parametrize("failing", [EngineUnavailable("down"), "slow", {"choices": []}])
async def test_without_the_model_the_question_is_searched_as_it_is(searching, papers, engine, failing):
    engine.answers = [failing]
    body = await searching(follow_ups="rewrite", deadline_ms=20).answer(chat())

    assert words(papers) == ["What does a bicycle cost?\nAnd for a child?"]
    assert body["choices"][0]["message"]["content"].startswith("Hello there")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the moon made of?", "The documents do not say anything about this."),
        ("月亮是什么做的？", "文档中没有与此相关的内容。"),
    ],
)
async def test_where_nothing_is_found_the_engine_is_not_asked(pipeline, papers, engine, question, answer):
    body = await pipeline.answer(chat([("user", question)], n=2))

    assert [choice["message"]["content"] for choice in body["choices"]] == [answer, answer]
    assert (body["ekiben"]["abstained"], body["ekiben"]["sources"]) == (True, [])
    assert body["usage"]["total_tokens"] == 0
    assert engine.asked == []


async def test_where_nothing_is_found_a_stream_says_so_too(pipeline, papers, engine):
    events = [event async for event in pipeline.stream(chat([("user", "Moon?")], stream=True))]

    said = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    assert said == "The documents do not say anything about this."
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["ekiben"]["abstained"]
    assert engine.asked == []


async def test_sources_say_which_of_them_are_cited(pipeline, papers, engine):
    papers.passages = [BIKES, DOGS]
    engine.pieces = ["Dogs are free 【", "2】 [7]."]
    body = await pipeline.answer(chat())

    assert [(s["number"], s["cited"]) for s in body["ekiben"]["sources"]] == [(1, False), (2, True)]
    assert not body["ekiben"]["abstained"]
    events = [event async for event in pipeline.stream(chat(stream=True))]
    assert [s["cited"] for s in events[-1]["ekiben"]["sources"]] == [False, True]
