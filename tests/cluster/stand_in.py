"""A stand-in engine for the cluster tier: OpenAI's streams at a steady pace, from a real server that takes a while to start.

`python stand_in.py --load-seconds 2 --pace 0.05` listens on port 8421 once its "weights" are there. On SIGTERM it takes no new
connection and ends the streams that are under way, as vLLM's server does.
"""

import argparse
import asyncio
import json
import os  # noqa: TID251  its key and its pod's name
import signal

from aiohttp import web


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a chat completion by `max_tokens` numbered words, with the name of the pod as the model's fingerprint."""
    key = os.environ.get("EKIBEN_ENGINE_KEY")
    if key and request.headers.get("Authorization") != f"Bearer {key}":
        return web.json_response({"error": {"message": "not the engine's key", "type": "x", "code": None}}, status=401)
    told = await request.json()
    words, pace, pod = told.get("max_tokens") or 8, request.app["pace"], os.environ.get("HOSTNAME", "")
    base = {"id": "chatcmpl-0", "created": 0, "model": told.get("model"), "system_fingerprint": pod}
    usage = {"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1}
    if not told.get("stream"):
        await asyncio.sleep(words * pace)
        message = {"role": "assistant", "content": " ".join(f"w{number}" for number in range(words))}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return web.json_response({**base, "object": "chat.completion", "choices": choices, "usage": usage})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)

    async def send(choices: list[dict], **more: dict) -> None:
        event = json.dumps({**base, "object": "chat.completion.chunk", "choices": choices, **more})
        await response.write(f"data: {event}\n\n".encode())

    for number in range(words):
        await send([{"index": 0, "delta": {"content": f"{' ' if number else ''}w{number}"}, "finish_reason": None}])
        await asyncio.sleep(pace)
    await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if (told.get("stream_options") or {}).get("include_usage"):
        await send([], usage=usage)
    await response.write(b"data: [DONE]\n\n")
    return response


async def health(_request: web.Request) -> web.Response:
    """Answer once it can be asked."""
    return web.Response()


async def models(_request: web.Request) -> web.Response:
    """List the one model."""
    return web.json_response({"object": "list", "data": [{"id": "stand-in", "object": "model", "parent": None}]})


async def serve(port: int, load_seconds: float, pace: float) -> None:
    """Load, listen, and serve until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.sleep(load_seconds)
    app = web.Application()
    app["pace"] = pace
    app.add_routes([web.post("/v1/chat/completions", answer), web.get("/health", health), web.get("/v1/models", models)])
    runner = web.AppRunner(app, shutdown_timeout=60)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8421)
    parser.add_argument("--load-seconds", type=float, default=0.0, help="before it listens")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds from word to word")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.load_seconds, arguments.pace))
