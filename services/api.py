"""The HTTP app: OpenAI's endpoints over a Pipeline. Pure ASGI, so that nothing is buffered and a caller's leaving is seen.

Each request is one task; a second one listens for the caller's leaving and cancels the first, which closes the engine's
stream. Every error leaves in OpenAI's shape, in mid-stream as an SSE event.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from services import documents, files
from services.admin import admin_routes
from services.admin_keys import key_routes
from services.auth import Auth
from services.caller import ANYBODY, Caller
from services.errors import BodyTooLarge, EkibenError, Forbidden, InvalidRequest, UnknownModel
from services.keepalive import COMMENT, kept_alive
from services.protocol import DONE, ChatRequest, CompletionRequest, EmbeddingRequest, frame, parse
from services.telemetry import Record, log

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from services.pipeline import Pipeline
    from services.slots import Slots

CLIENT_CLOSED_REQUEST = 499
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True)
class EmbeddingModel:
    """The embedding model as the API offers it: embed(text, kind) returns the vector and the number of tokens."""

    name: str
    dimensions: int
    embed: Callable[[str, str], Awaitable[tuple[list[float], int]]]


@dataclass(frozen=True)
class Parts:
    """What the app serves; made at start by the composition root."""

    pipeline: Pipeline
    embedding: EmbeddingModel
    max_body_bytes: int
    slots: Slots
    admin_token: str | None = None
    auth: Auth = field(default_factory=Auth)
    """Who is let in; as it is made without arguments, nobody."""
    desks: Mapping[str, documents.Desk] = field(default_factory=dict)
    """Where documents of a collection are handed in."""
    cabinet: files.Cabinet | None = None
    keepalive_seconds: float = 10.0
    """After so long without a word a stream gets a comment; errors are events of it from then on."""


class _Reply:
    """One answer under way: knows whether its head has left."""

    def __init__(self, send: Send, named: dict[str, str] | None = None, content_type: str = "") -> None:
        self._send = send
        self.content_type = content_type
        self.fresh = False
        """Whether the caller wants no answer from the cache."""
        self.caller: Caller = ANYBODY
        self.named = named or {}
        """The parts of path and query that have names."""
        self.started = False
        self.request_id = uuid.uuid4().hex

    async def whole(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        await self._start(status, [*_JSON, (b"content-length", str(len(content)).encode())], headers)
        await self._send({"type": "http.response.body", "body": content})

    async def nobody(self) -> None:
        """Answer a caller who has gone: BentoML waits for the head of an answer as long as its time-out lasts."""
        with suppress(OSError):
            await self.whole(CLIENT_CLOSED_REQUEST, {})

    async def events(self, headers: dict[str, str]) -> None:
        await self._start(200, _EVENTS, headers)

    async def piece(self, content: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def _start(self, status: int, fixed: list[tuple[bytes, bytes]], headers: dict[str, str] | None) -> None:
        self.started = True
        named = {"x-request-id": self.request_id, **(headers or {})}
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": [*fixed, *encoded]})


_Handler = Callable[[Parts, bytes, _Reply], Awaitable[None]]


class _Endpoint:
    """An ASGI app around a handler: asks who it is, reads the body, watches for the caller's leaving, shapes errors."""

    def __init__(self, handler: _Handler, longest: Callable[[Parts, _Reply], int] | None = None) -> None:
        self._handler = handler
        self._longest = longest or (lambda parts, _: parts.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: Parts = scope["app"].state.parts
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        named = dict(parse_qsl(scope["query_string"].decode("latin-1"))) | scope.get("path_params", {})
        reply = _Reply(send, named, headers.get("content-type", ""))
        reply.fresh = "no-cache" in headers.get("cache-control", "") or headers.get("x-ekiben-cache") == "bypass"
        body: bytes | None = None

        async def admitted() -> None:
            nonlocal body
            # Before the body: who is not let in is not read either.
            reply.caller = await parts.auth.caller(headers, (scope.get("client") or (None,))[0])
            body = await _read(receive, self._longest(parts, reply))

        if not await _shaped(reply, admitted()):
            return
        if body is None:
            await reply.nobody()
            return
        work = asyncio.ensure_future(_shaped(reply, self._handler(parts, body, reply)))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            if not reply.started:
                await reply.nobody()


async def _shaped(reply: _Reply, work: Awaitable[None]) -> bool:
    """Do the work, and tell what goes wrong in OpenAI's shape; False where that was needed."""
    try:
        await work
    except EkibenError as error:
        await _fail(reply, error.status, error.body(), error.headers())
    except OSError:
        raise  # the caller has gone: there is nobody to tell
    except Exception as error:  # noqa: BLE001  the last resort of a server
        # The kind alone: messages of unforeseen errors may quote the request.
        log.error("unforeseen", request_id=reply.request_id, kind=type(error).__name__)
        message = f"Something went wrong on our side (request {reply.request_id})."
        await _fail(reply, 500, {"error": {"message": message, "type": "server_error", "param": None, "code": None}}, {})
    else:
        return True
    return False


async def _fail(reply: _Reply, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    if reply.started:
        await reply.piece(frame(body) + DONE, more=False)
    else:
        await reply.whole(status, body, headers)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return the body, or None when the caller left before its end; raises BodyTooLarge as soon as it is."""
    body = bytearray()
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(f"The body is over {limit} bytes.")
        if not message.get("more_body"):
            return bytes(body)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _generate(parts: Parts, request: ChatRequest | CompletionRequest, reply: _Reply) -> None:
    route = parts.pipeline.route(request, reply.caller)
    record = Record(route.name, id=reply.request_id, fresh=reply.fresh)
    versions = _version_headers(route.versions())
    if not request.stream:
        body = await parts.pipeline.answer(request, route, record)
        await reply.whole(200, body, versions | record.headers)
        return

    async def waiting() -> None:
        if not reply.started:
            await reply.events(versions | record.headers)
        await reply.piece(COMMENT)

    begun = False
    async with (
        kept_alive(waiting, parts.keepalive_seconds) as begin,
        aclosing(parts.pipeline.stream(request, route, record)) as events,
    ):
        async for event in events:
            if not begun:
                await begin()
                begun = True
            if not reply.started:
                await reply.events(versions | record.headers)
            await reply.piece(frame(event))
    await reply.piece(DONE, more=False)


async def _chat(parts: Parts, body: bytes, reply: _Reply) -> None:
    await _generate(parts, parse(ChatRequest, body), reply)


async def _completion(parts: Parts, body: bytes, reply: _Reply) -> None:
    await _generate(parts, parse(CompletionRequest, body), reply)


async def _embeddings(parts: Parts, body: bytes, reply: _Reply) -> None:
    request, model = parse(EmbeddingRequest, body), parts.embedding
    if request.model != model.name:
        raise UnknownModel(
            f"The model {request.model[:100]!r} does not exist; for embeddings there is: {model.name}", param="model"
        )
    if not reply.caller.may_use(model.name):
        raise Forbidden(f"This API key may not use the model {model.name!r}.", param="model")
    if request.dimensions not in {None, model.dimensions}:
        raise InvalidRequest(f"{model.name} has {model.dimensions} dimensions.", param="dimensions", code="invalid_value")
    texts = [request.input] if isinstance(request.input, str) else request.input
    embedded = await asyncio.gather(*(model.embed(text, request.input_type) for text in texts))
    data: list[dict[str, Any]] = []
    for index, (vector, _tokens) in enumerate(embedded):
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append(
            {"object": "embedding", "index": index, "embedding": packed if request.encoding_format == "base64" else vector}
        )
    used = sum(tokens for _vector, tokens in embedded)
    usage = {"prompt_tokens": used, "total_tokens": used}
    await reply.whole(200, {"object": "list", "data": data, "model": model.name, "usage": usage})


async def _search(parts: Parts, body: bytes, reply: _Reply) -> None:
    record = Record("", id=reply.request_id)
    await reply.whole(200, await documents.search(parts.pipeline, body, reply.caller, record), record.headers)


async def _search_store(parts: Parts, body: bytes, reply: _Reply) -> None:
    kept = parts.cabinet.files if parts.cabinet else None
    record = Record("", id=reply.request_id)
    found = await documents.search_store(parts.pipeline, reply.named["name"], body, reply.caller, kept, record)
    await reply.whole(200, found, record.headers)


async def _documents(parts: Parts, _body: bytes, reply: _Reply) -> None:
    await reply.whole(200, await documents.listed(parts.pipeline, parts.desks, _asked(reply, "model"), reply.caller))


async def _add_documents(parts: Parts, body: bytes, reply: _Reply) -> None:
    await reply.whole(200, await documents.add(parts.pipeline, parts.desks, body, reply.caller))


async def _delete_document(parts: Parts, _body: bytes, reply: _Reply) -> None:
    model, name = _asked(reply, "model"), reply.named["name"]
    await reply.whole(200, await documents.remove(parts.pipeline, parts.desks, model, name, reply.caller))


def _filing(parts: Parts, reply: _Reply, body: bytes = b"") -> files.Asked:
    return files.Asked(parts.pipeline, parts.desks, parts.cabinet, reply.caller, reply.named, body, reply.content_type)


def _of_files(answer: Callable[[files.Asked], Awaitable[dict[str, Any]]]) -> _Handler:
    async def handler(parts: Parts, body: bytes, reply: _Reply) -> None:
        await reply.whole(200, await answer(_filing(parts, reply, body)))

    return handler


def _asked(reply: _Reply, name: str) -> str:
    if not reply.named.get(name):
        raise InvalidRequest(f"Missing required parameter: {name}", param=name, code="missing_required_parameter")
    return reply.named[name]


async def _stores(parts: Parts, _body: bytes, reply: _Reply) -> None:
    data = [documents.card(route, _STARTED) for route in documents.stores(parts.pipeline, reply.caller)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    await reply.whole(200, {"object": "list", "data": data, **ends, "has_more": False})


async def _store(parts: Parts, _body: bytes, reply: _Reply) -> None:
    await reply.whole(200, documents.card(documents.store(parts.pipeline, reply.named["name"], reply.caller), _STARTED))


async def _models(parts: Parts, _body: bytes, reply: _Reply) -> None:
    await reply.whole(200, {"object": "list", "data": _model_cards(parts, reply.caller)})


async def _model(parts: Parts, _body: bytes, reply: _Reply) -> None:
    name = reply.named["name"]
    card = next((card for card in _model_cards(parts, reply.caller) if card["id"] == name), None)
    if card is None:
        raise UnknownModel(f"The model {name[:100]!r} does not exist.", param="model")
    await reply.whole(200, card)


_STARTED = int(time.time())


def _model_cards(parts: Parts, caller: Caller) -> list[dict[str, Any]]:
    """What the caller may use."""
    cards = [
        {
            "id": r.name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "ekiben",
            "ekiben": {"description": r.description, **r.versions(), "adapters": parts.slots.describe(r.adapters)},
        }
        for r in parts.pipeline.routes.all.values()
        if r.open_to(caller)
    ]
    if caller.may_use(parts.embedding.name):
        cards.append({"id": parts.embedding.name, "object": "model", "created": _STARTED, "owned_by": "ekiben"})
    return cards


def _version_headers(versions: dict[str, str | None]) -> dict[str, str]:
    return {f"x-ekiben-{name}": value for name, value in versions.items() if value is not None}


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "Something went wrong."
    body = {"error": {"message": detail, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status_code=status, headers=getattr(error, "headers", None))


def create_app(compose: Callable[[], AbstractAsyncContextManager[Parts]]) -> Starlette:
    """Return the app; `compose` is entered when the server starts and left when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with compose() as parts:
            app.state.parts = parts
            yield

    routes = [
        Route("/v1/chat/completions", _Endpoint(_chat), methods=["POST"]),
        Route("/v1/completions", _Endpoint(_completion), methods=["POST"]),
        Route("/v1/embeddings", _Endpoint(_embeddings), methods=["POST"]),
        Route("/v1/rag/search", _Endpoint(_search), methods=["POST"]),
        Route("/v1/rag/documents", _Endpoint(_documents), methods=["GET"]),
        Route("/v1/rag/documents", _Endpoint(_add_documents), methods=["POST"]),
        Route("/v1/rag/documents/{name}", _Endpoint(_delete_document), methods=["DELETE"]),
        Route("/v1/vector_stores", _Endpoint(_stores), methods=["GET"]),
        Route("/v1/vector_stores/{name}", _Endpoint(_store), methods=["GET"]),
        Route("/v1/vector_stores/{name}/search", _Endpoint(_search_store), methods=["POST"]),
        Route(
            "/v1/files",
            _Endpoint(_of_files(files.upload), lambda parts, reply: files.longest_upload(_filing(parts, reply))),
            methods=["POST"],
        ),
        *(Route(path, _Endpoint(_of_files(answer)), methods=[method]) for method, path, answer in files.ENDPOINTS),
        Route("/v1/models", _Endpoint(_models), methods=["GET"]),
        Route("/v1/models/{name:path}", _Endpoint(_model), methods=["GET"]),
        *admin_routes(),
        *key_routes(),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
