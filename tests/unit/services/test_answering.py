"""Questions asked of a server that answers as a box does, or fails as one may."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from rag.judgements import Question
from services import answering
from services.answering import AnsweringError, Box, ask_all
from services.results import BadResult, Kept, read_result

LONG = "The dining car is open from 6:30 to 22:00. " + "It is in the middle of the train. " * 8 + "An ekiben costs 11 euros."
QUESTIONS = [Question(str(number), f"What does an ekiben cost in car {number}?", ("11 euros",)) for number in range(6)]


class Server:
    """A box with one route and one passage; `said` and `broken` are functions of a question and how often it was asked."""

    def __init__(self):
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.said = lambda _question: {"text": "An ekiben costs 11 euros. [1]"}
        self.broken = lambda _question, _times: None
        self.search = True
        self.headers = {}

    def app(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/rag/search", self.found)
        return app

    async def models(self, request):
        self.headers = dict(request.headers)
        return web.json_response({"object": "list", "data": [{"id": "handbook"}, {"id": "raw"}]})

    async def found(self, _request):
        if not self.search:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"data": [{"source": "b.md", "page": None, "heading": "Food", "text": LONG}]})

    async def chat(self, request):
        question = (await request.json())["messages"][0]["content"]
        self.asked.append(question)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if broken := self.broken(question, self.asked.count(question)):
            return broken
        said = {"text": "", "sources": [{"number": 1, "source": "b.md", "page": None, "heading": "Food", "excerpt": LONG[:240]}]}
        said |= self.said(question)
        about = {"route": "handbook", "model": "m:1", "sources": said["sources"], "abstained": said.get("abstained", False)}
        choice = {"finish_reason": said.get("finish", "stop"), "message": {"role": "assistant", "content": said["text"]}}
        usage = {"prompt_tokens": 50, "completion_tokens": 9}
        return web.json_response({"choices": [choice], "usage": usage, **({} if said.get("bare") else {"ekiben": about})})


def refusal(status, code=None, message="no", **headers):
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


@pytest.fixture
async def server():
    server = Server()
    async with TestServer(server.app()) as at:
        server.url = str(at.make_url("/v1"))
        yield server


async def ask(server, questions=QUESTIONS, model="handbook", concurrency=2, **fields):
    async with Box(server.url, {"x-tenant": "acme"}) as box:
        return await ask_all(box, model, questions, concurrency=concurrency, **fields)


async def test_every_question_is_asked_once_and_graded(server):
    progress = []
    told = await ask(server, progress=lambda *done: progress.append(done))

    assert [row.id for row in told.rows] == [question.id for question in QUESTIONS]
    assert sorted(server.asked) == sorted(question.text for question in QUESTIONS)
    assert server.most_at_once == 2
    assert progress[-1] == (6, 6)
    assert server.headers["x-tenant"] == "acme"
    row = told.rows[0]
    assert (row.figures["contains"], row.figures["groundedness"], row.figures["citation_precision"]) == (1, 1, 1)
    assert (row.language, row.prompt_tokens, row.completion_tokens) == ("en", 50, 9)
    assert row.versions == {"route": "handbook", "model": "m:1"}
    assert row.latency_ms >= 10
    assert row.whole_passages


async def test_without_a_search_excerpts_are_what_there_is(server):
    server.search = False
    [row] = (await ask(server, QUESTIONS[:1])).rows

    assert not row.whole_passages
    assert row.figures["groundedness"] == 0


async def test_another_server_shows_no_passages(server):
    server.said = lambda _question: {"text": "11 euros", "bare": True}
    [row] = (await ask(server, QUESTIONS[:1])).rows

    assert row.figures == {"exact": 1, "f1": 1, "contains": 1, "false_abstention": 0}


async def test_abstentions_and_refusals(server):
    server.said = lambda question: (
        {"text": "Ask the desk.", "abstained": True, "sources": []}
        if "1" in question
        else {"text": "", "finish": "content_filter"}
    )
    server.broken = lambda question, _times: refusal(400, "content_filter") if "3" in question else None
    rows = (await ask(server, QUESTIONS[1:4])).rows

    assert [row.refused for row in rows] == [False, True, True]
    assert [row.figures["false_abstention"] for row in rows] == [1, 0, 0]


async def test_a_busy_server_is_asked_again(server):
    server.broken = lambda _question, times: refusal(503, **{"retry-after": "0"}) if times < 3 else None
    told = await ask(server, QUESTIONS[:1])

    assert (len(told.rows), len(server.asked), told.failed) == (1, 3, {})


async def test_a_question_that_fails_is_told_and_the_others_go_on(server):
    server.broken = lambda question, _times: refusal(500, None, "broken", **{"retry-after": "0"}) if "2" in question else None
    told = await ask(server)

    assert told.failed == {"2": "500 broken"}
    assert len(told.rows) == 5
    assert len(server.asked) == 5 + answering.ATTEMPTS


@pytest.mark.parametrize(
    ("model", "broken", "told"),
    [
        ("handbok", None, "has no model 'handbok'; there is: handbook, raw"),
        ("handbook", lambda _question, _times: refusal(401, None, "key?"), "refuses 'handbook': 401 key?"),
        ("handbook", lambda _question, _times: web.json_response({"answer": 1}), "an answer has no message"),
        ("handbook", lambda _question, _times: web.Response(text="hello"), "gives no JSON"),
    ],
)
async def test_what_ends_the_run(server, model, broken, told):
    server.broken = broken or server.broken
    with pytest.raises(AnsweringError, match=told):
        await ask(server, model=model)


async def test_nobody_there():
    server = Server()
    server.url = f"http://127.0.0.1:{unused_port()}/v1"

    with pytest.raises(AnsweringError, match=r"does not answer .* is the box served there"):
        await ask(server)


async def test_a_run_that_was_ended_goes_on(server, tmp_path):
    path = tmp_path / "results" / "run.jsonl"
    server.broken = lambda question, _times: refusal(401) if "3" in question else None
    with Kept(path, "handbook", QUESTIONS, resume=False) as kept, pytest.raises(AnsweringError):
        await ask(server, kept=kept, concurrency=1)
    path.write_text(path.read_text() + '{"row": {"id": "4", "langu')  # as a kill leaves it
    assert [row.id for row in read_result(path)] == ["0", "1", "2"]

    server.asked.clear()
    server.broken = lambda _question, _times: None
    with Kept(path, "handbook", QUESTIONS, resume=True) as kept:
        told = await ask(server, kept=kept)
    assert len(server.asked) == 3
    assert [row.id for row in told.rows] == [question.id for question in QUESTIONS]
    assert sorted(row.id for row in read_result(path)) == [question.id for question in QUESTIONS]
    assert json.loads(path.read_text().splitlines()[1])["answer"] == "An ekiben costs 11 euros. [1]"


async def test_files_of_other_runs_are_left_alone(server, tmp_path):
    path = tmp_path / "run.jsonl"
    with Kept(path, "handbook", QUESTIONS, resume=False):
        pass
    content = path.read_text()

    for model, questions, resume, told in (
        ("handbook", QUESTIONS, False, "is there already"),
        ("raw", QUESTIONS, True, "of another model"),
        ("handbook", QUESTIONS[:2], True, "other questions"),
    ):
        with pytest.raises(BadResult, match=told):
            Kept(path, model, questions, resume=resume)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [{"id": 1}]}', "no json", '{"model": "x"}\n{"row": {}}\n'])
def test_files_that_are_no_results(tmp_path, content):
    path = tmp_path / "run.jsonl"
    path.write_text(content)

    with pytest.raises(BadResult, match="no result of"):
        read_result(path)
