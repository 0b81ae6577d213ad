"""A server that answers at once, in vLLM's place: what stands before it is measured alone.

`uvicorn benchmarks.stand_in:app`. Chats get `max_tokens` words, whole or as one event for each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_HEAD = {"id": "chatcmpl-0", "created": 0, "model": "stand-in"}
_JSON, _EVENTS = [(b"content-type", b"application/json")], [(b"content-type", b"text/event-stream")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer chats; anything else is answered as by an engine that is well and has no adapters."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    chat = scope["path"].endswith("/chat/completions")
    asked = json.loads(body) if chat else {}
    streamed = bool(asked.get("stream"))
    await send({"type": "http.response.start", "status": 200, "headers": _EVENTS if streamed else _JSON})
    if not streamed:
        content = whole(asked.get("max_tokens") or 16) if chat else {"object": "list", "data": []}
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})
        return
    for event in events(asked.get("max_tokens") or 16):
        await send({"type": "http.response.body", "body": b"data: " + json.dumps(event).encode() + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def whole(words: int) -> dict[str, Any]:
    """Return an answer of so many words."""
    message = {"role": "assistant", "content": "word " * words}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _usage(words)}


def events(words: int) -> list[dict[str, Any]]:
    """Return the events of such an answer: a role, a word in each, the end, and the usage."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": "word "} for _ in range(words)), {}]
    chunk = {**_HEAD, "object": "chat.completion.chunk"}
    said = [
        {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop", "logprobs": None}]}
        for delta in deltas
    ]
    return [*said, {**chunk, "choices": [], "usage": _usage(words)}]


def _usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": 20, "completion_tokens": words, "total_tokens": 20 + words}
