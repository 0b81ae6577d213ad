"""The engine client against a real HTTP server on the loopback interface."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from services.engine_client import EngineClient, EngineWatch, sse_data
from services.errors import EngineRefused, EngineUnavailable


@asynccontextmanager
async def served(handler):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)

    async def health(_request):
        return web.Response()

    app.router.add_get("/health", health)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


def writing(pieces, *, pause=0.0, hold=False, gone=None):
    async def handler(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(pause)
            if hold:
                await asyncio.sleep(30)
        except (ConnectionResetError, asyncio.CancelledError):
            if gone is not None:
                gone.set()
            raise
        return response

    return handler


def event(text):
    return b"data: " + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n\n"


async def texts(url):
    async with EngineClient(url) as client:
        return [e["text"] async for e in client.stream("/v1/chat/completions", {})]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_events_survive_any_cut_of_the_bytes(size):
    whole = event("火车 🚄") + b": comment\n\n" + event("é").replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"

    async def pieces():
        for at in range(0, len(whole), size):
            yield whole[at : at + size]

    found = [json.loads(d)["text"] async for d in sse_data(pieces()) if d != b"[DONE]"]
    assert found == ["火车 🚄", "é"]


async def test_a_stream_over_the_network():
    whole = event("你好") + event("b") + b"data: [DONE]\n\n"
    async with served(writing([whole[:9], whole[9:11], whole[11:]], pause=0.01)) as url:
        assert await texts(url) == ["你好", "b"]


async def test_a_stream_that_ends_before_its_end():
    async with served(writing([event("a"), b'data: {"te'])) as url:
        with pytest.raises(EngineUnavailable, match="mid-stream"):
            await texts(url)


async def test_an_error_event_in_mid_stream():
    broken = b'data: {"error": {"message": "boom", "code": 500}}\n\n'
    async with served(writing([event("a"), broken])) as url:
        with pytest.raises(EngineUnavailable):
            await texts(url)


async def test_closing_a_stream_closes_the_connection():
    gone = asyncio.Event()
    async with served(writing([event("a")] * 3, hold=True, gone=gone)) as url, EngineClient(url) as client:
        stream = client.stream("/v1/chat/completions", {})
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(gone.wait(), 1)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (
            400,
            {"error": {"message": "maximum context length is 9", "param": "messages"}},
            EngineRefused,
            "context_length_exceeded",
        ),
        (404, {"error": {"message": "no such model"}}, EngineRefused, "engine_refused"),
        (500, {"error": {"message": "traceback"}}, EngineUnavailable, "engine_unavailable"),
        (502, None, EngineUnavailable, "engine_unavailable"),
    ],
)
async def test_verdicts(status, body, kind, code):
    async def handler(_request):
        return web.json_response(body, status=status) if body else web.Response(status=status, text="<html>")

    async with served(handler) as url, EngineClient(url) as client:
        with pytest.raises(kind) as caught:
            await client.complete("/v1/chat/completions", {})
    assert caught.value.code == code
    assert "traceback" not in caught.value.message


async def test_nobody_there():
    async with EngineClient("http://127.0.0.1:9") as client:
        with pytest.raises(EngineUnavailable, match="not up"):
            await client.complete("/v1/chat/completions", {})
        assert not await client.healthy()
        assert await client.metrics() == ""


async def test_liveness_fails_only_after_an_engine_that_was_up_stays_away():
    async with EngineClient("http://127.0.0.1:9") as client:
        watch = EngineWatch(client, grace_seconds=0)
        assert await watch.alive()  # still starting
        assert not await watch.ready()
    async with served(writing([])) as url, EngineClient(url) as client:
        watch = EngineWatch(client, grace_seconds=0.2)
        assert await watch.ready()
        client._base_url = "http://127.0.0.1:9"
        assert await watch.alive()
        await asyncio.sleep(0.3)
        assert not await watch.alive()
        client._base_url = url
        assert await watch.alive()
