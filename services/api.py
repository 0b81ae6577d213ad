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
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
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
from services.meter import prompt_tokens
from services.protocol import DONE, ChatRequest, CompletionRequest, EmbeddingRequest, frame, parse
from services.telemetry import Record, log

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from accounts.audit import Outcome
    from accounts.rates import Hold
    from services.pipeline import Pipeline
    from services.slots import Slots

CLIENT_CLOSED_REQUEST = 499
_ACTIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rag/search": "search",
}
"""As the audit trail calls them; the others go by method and path."""
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


class _Left(OSError):
    """The caller has gone: there is nobody to tell."""


class _Reply:
    """One answer under way: knows whether its head has left."""

    def __init__(self, send: Send, named: dict[str, str] | None = None, content_type: str = "") -> None:
        async def sent(message: Message) -> None:
            try:
                await send(message)
            except OSError as error:
                raise _Left from error

        self._send = sent
        self.content_type = content_type
        self.caller: Caller = ANYBODY
        self.named = named or {}
        """The parts of path and query that have names."""
        self.started = False
        self.request_id = uuid.uuid4().hex
        self.record = Record("", id=self.request_id, fresh=False)
        """What a pipeline fills, and writes down, once the request has a route."""
        self.tokens = 0
        """Of a prompt that no pipeline saw."""
        self.code: str | None = None
        """Of the error, where there is one."""
        self.write: Callable[[int], None] = lambda _status: None
        """Write the line of the audit trail of a request that no pipeline wrote down."""

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
        if not self.record.action:
            self.write(status)
        named = {"x-request-id": self.request_id, **(headers or {})}
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": [*fixed, *encoded]})


_Handler = Callable[[Parts, bytes, _Reply], Awaitable[None]]


class _Endpoint:
    """An ASGI app around a handler: asks who it is, reads the body, watches for the caller's leaving, shapes errors.

    `action` is what the audit trail calls such a request where it has no route yet, or never; None is not written.
    """

    def __init__(self, handler: _Handler, action: str | None, longest: Callable[[Parts, _Reply], int] | None = None) -> None:
        self._handler, self._action = handler, action
        self._longest = longest or (lambda parts, _: parts.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: Parts = scope["app"].state.parts
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        named = dict(parse_qsl(scope["query_string"].decode("latin-1"))) | scope.get("path_params", {})
        reply = _Reply(send, named, headers.get("content-type", ""))
        reply.record.fresh = "no-cache" in headers.get("cache-control", "") or headers.get("x-ekiben-cache") == "bypass"
        accounting, body, known = parts.pipeline.accounting, None, False
        if accounting is not None and self._action is not None:
            action = self._action
            reply.write = lambda status: accounting.note(
                reply.request_id, action, reply.caller if known else None, outcome=_outcome(status),
                seconds=time.monotonic() - reply.record.started, prompt_tokens=reply.tokens,
                more={"status": status} | ({"code": reply.code} if reply.code else {}),
            )  # fmt: skip

        async def admitted() -> None:
            nonlocal body, known
            # Before the body: who is not let in is not read either.
            reply.caller = await parts.auth.caller(headers, (scope.get("client") or (None,))[0])
            known = True
            if accounting is not None and self._action is not None:
                accounting.check_audit()
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
        reply.code = error.code
        await _fail(reply, error.status, error.body(), error.headers())
    except _Left:
        raise
    except Exception as error:  # noqa: BLE001  the last resort of a server
        # The kind alone: messages of unforeseen errors may quote the request.
        log.error("unforeseen", request_id=reply.request_id, kind=type(error).__name__)
        message = f"Something went wrong on our side (request {reply.request_id})."
        await _fail(reply, 500, {"error": {"message": message, "type": "server_error", "param": None, "code": None}}, {})
    else:
        return True
    return False


def _outcome(status: int) -> Outcome:
    if status == CLIENT_CLOSED_REQUEST:
        return "cancelled"
    return "ok" if status < HTTPStatus.BAD_REQUEST else "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "error"


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
    record = reply.record
    record.route = route.name
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
    headers: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        hold: Hold | None = None
        if parts.pipeline.accounting is not None:
            estimate = sum(prompt_tokens({"prompt": text}) for text in texts)
            hold = await stack.enter_async_context(parts.pipeline.accounting.embedding(reply.caller, estimate))
            headers = hold.headers()
        embedded = await asyncio.gather(*(model.embed(text, request.input_type) for text in texts))
        reply.tokens = sum(tokens for _vector, tokens in embedded)
        if hold is not None:
            hold.settle(reply.tokens)
    data: list[dict[str, Any]] = []
    for index, (vector, _tokens) in enumerate(embedded):
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append(
            {"object": "embedding", "index": index, "embedding": packed if request.encoding_format == "base64" else vector}
        )
    usage = {"prompt_tokens": reply.tokens, "total_tokens": reply.tokens}
    await reply.whole(200, {"object": "list", "data": data, "model": model.name, "usage": usage}, headers)


async def _search(parts: Parts, body: bytes, reply: _Reply) -> None:
    found = await documents.search(parts.pipeline, body, reply.caller, reply.record)
    await reply.whole(200, found, reply.record.headers)


async def _search_store(parts: Parts, body: bytes, reply: _Reply) -> None:
    kept = parts.cabinet.files if parts.cabinet else None
    found = await documents.search_store(parts.pipeline, reply.named["name"], body, reply.caller, kept, reply.record)
    await reply.whole(200, found, reply.record.headers)


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

    def endpoint(method: str, path: str, handler: _Handler, longest: Callable[[Parts, _Reply], int] | None = None) -> Route:
        action = None if path.startswith("/v1/models") else _ACTIONS.get(path, f"{method} {path}")
        return Route(path, _Endpoint(handler, action, longest), methods=[method])

    routes = [
        endpoint("POST", "/v1/chat/completions", _chat),
        endpoint("POST", "/v1/completions", _completion),
        endpoint("POST", "/v1/embeddings", _embeddings),
        endpoint("POST", "/v1/rag/search", _search),
        endpoint("GET", "/v1/rag/documents", _documents),
        endpoint("POST", "/v1/rag/documents", _add_documents),
        endpoint("DELETE", "/v1/rag/documents/{name}", _delete_document),
        endpoint("GET", "/v1/vector_stores", _stores),
        endpoint("GET", "/v1/vector_stores/{name}", _store),
        endpoint("POST", "/v1/vector_stores/{name}/search", _search_store),
        endpoint("POST", "/v1/files", _of_files(files.upload), lambda parts, reply: files.longest_upload(_filing(parts, reply))),
        *(endpoint(method, path, _of_files(answer)) for method, path, answer in files.ENDPOINTS),
        endpoint("GET", "/v1/models", _models),
        endpoint("GET", "/v1/models/{name:path}", _model),
        *admin_routes(),
        *key_routes(),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
