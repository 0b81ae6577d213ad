"""The load that every figure comes from: what is sent, and what is counted."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.errors import EngineRefused
from services.measure import Measured, distinct_prompt, measure


class Served:
    """A server that streams `tokens` pieces after `pause` seconds, and remembers what it was asked."""

    def __init__(self, pause=0.0):
        self.asked, self.pause, self.together, self.most = [], pause, 0, 0

    async def chat(self, request):
        body = await request.json()
        self.asked.append(body)
        if body["model"] == "nobody":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        self.together += 1
        self.most = max(self.most, self.together)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
        await self.send(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(self.pause)
        for _ in range(body["max_tokens"]):
            await self.send(response, {"choices": [{"delta": {"content": "x"}}]})
        await asyncio.sleep(self.pause)
        await self.send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        self.together -= 1
        return response

    async def send(self, response, event):
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@pytest.fixture
async def serve():
    servers = []

    async def start(served):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", served.chat)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/"))

    yield start
    for server in servers:
        await server.close()


async def test_streams_run_together_and_are_counted(serve):
    served = Served(pause=0.1)
    measured = await measure(await serve(served), "m", streams=5, tokens=4)

    assert served.most == 5
    assert (measured.streams, measured.tokens, measured.prompt_tokens) == (5, 20, 35)
    assert 0.2 <= measured.seconds < 2
    assert measured.tokens_per_second == pytest.approx(20 / measured.seconds)


async def test_the_first_token_is_the_first_text_and_not_the_role(serve):
    measured = await measure(await serve(Served(pause=0.1)), "m", streams=3, tokens=2)

    assert len(measured.ttft_seconds) == 3
    assert all(0.1 <= first < measured.seconds for first in measured.ttft_seconds)


async def test_every_stream_has_its_prompt_and_a_length_that_is_kept(serve):
    served = Served()
    url = await serve(served)
    await measure(url, "m", streams=4, tokens=3)
    await measure(url, "m", streams=4, tokens=3, seed=1)

    assert len({body["messages"][0]["content"] for body in served.asked}) == 8
    assert all(body["ignore_eos"] and body["max_tokens"] == 3 for body in served.asked)


async def test_several_models_take_turns(serve):
    served = Served()
    await measure(await serve(served), ["a", "b"], streams=4, tokens=1)

    assert sorted(body["model"] for body in served.asked) == ["a", "a", "b", "b"]


async def test_a_refusal_is_no_figure(serve):
    with pytest.raises(EngineRefused, match="no such model"):
        await measure(await serve(Served()), "nobody", streams=2, tokens=1)


def test_medians_are_taken_over_the_streams():
    measured = Measured(streams=3, tokens=30, prompt_tokens=3, seconds=2.0, ttft_seconds=(0.1, 0.9, 0.2))

    assert (measured.tokens_per_second, measured.ttft_p50_seconds, measured.ttft_max_seconds) == (15.0, 0.2, 0.9)


def test_the_same_seed_gives_the_same_prompt_of_the_asked_length():
    assert distinct_prompt(1, 2, 40) == distinct_prompt(1, 2, 40)
    assert len(distinct_prompt(1, 2, 40).split()) == 40
