"""One request passed on and its answer passed back: headers, bytes, comments for who waits, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

WAITING = b": waiting\n\n"
_HOP_BY_HOP = frozenset(
    {"connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
_CONNECT_SECONDS = 5.0
_LINE_BYTES = 65_536
_ERROR_BYTES = 65_536


def open_client() -> aiohttp.ClientSession:
    """Return a client that passes requests on as they are: nothing added, unpacked, followed, remembered, or sent twice."""
    client = aiohttp.ClientSession(
        # A connection of its own for each request: none is lost to one that the upstream was just closing. No limit: how many
        # are at the upstream at once is not decided here.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        max_line_size=_LINE_BYTES,
        max_field_size=_LINE_BYTES,
    )
    # aiohttp sends a GET, PUT or DELETE again when the connection breaks before an answer came.
    client._retry_connection = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return client


async def send(client: aiohttp.ClientSession, upstream: str, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
    """Send a request to the upstream's URL, once, and return the head of its answer.

    Raises aiohttp's ClientConnectorError and ConnectionTimeoutError where nothing was sent, and another ClientError where it may
    have been.
    """
    headers = end_to_end(request.headers)
    headers.popall("Content-Length", None)  # of the body as it was read
    peers = [*request.headers.getall("X-Forwarded-For", []), *([request.remote] if request.remote else [])]
    # A box that lets in who is on its machine must see that this one is not, or not surely.
    headers["X-Forwarded-For"] = ", ".join(peers) or "unknown"
    headers.setdefault("X-Forwarded-Proto", request.scheme)
    return await client.request(
        request.method,
        URL(upstream + request.raw_path, encoded=True),
        headers=headers,
        data=body if body or "Content-Length" in request.headers else None,
        allow_redirects=False,
    )


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers without those that are of one connection (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for line in headers.getall("Connection", []) for name in line.split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP | named)


def wants_stream(request: web.Request, body: bytes) -> bool:
    """Whether a request asks for its answer as a stream of events, as OpenAI's clients do."""
    if request.method != "POST" or b'"stream"' not in body:
        return False
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("stream") is True


class Waiting:
    """While its context is open the caller of a stream is told every so many `seconds` that he waits; None: he is not.

    The first time only if he is `held` just then: what answers slowly has a status of its own to give.

    Once he was told, `begun` is the answer that he gets: its status is 200, whatever comes.
    """

    def __init__(self, request: web.Request, seconds: float | None, *, held: Callable[[], bool]) -> None:
        self._request, self._seconds, self._held = request, seconds, held
        self._task: asyncio.Task[None] | None = None
        self.begun: web.StreamResponse | None = None

    async def __aenter__(self) -> Self:
        if self._seconds is not None:
            self._task = asyncio.create_task(self._tell(self._seconds))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            if self.begun is None:
                if not self._held():
                    continue
                begun = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
                await begun.prepare(self._request)
                self.begun = begun
            await self.begun.write(WAITING)


async def relay(request: web.Request, upstream: aiohttp.ClientResponse, begun: web.StreamResponse | None) -> web.StreamResponse:
    """Pass an answer on; into the stream that `begun` is, where the caller had to be told that he waits.

    A stream that breaks between events ends with an error event; of any other answer that breaks, and of a stream within an
    event, the connection is closed before its end. Raises Broken after that.
    """
    if begun is None:
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=end_to_end(upstream.headers))
        await response.prepare(request)
    elif upstream.status == HTTPStatus.OK and upstream.content_type == "text/event-stream":
        response = begun
    else:
        await begun.write(_event(await _error_of(upstream)))
        return begun
    tail = b"\n\n"
    while True:
        try:
            chunk = await upstream.content.readany()
        except (aiohttp.ClientError, TimeoutError) as error:
            if upstream.content_type == "text/event-stream" and tail.endswith((b"\n\n", b"\r\n\r\n")):
                await response.write(_event(error_body("The engine was lost in mid-stream.", "engine_lost")))
            elif request.transport is not None:
                request.transport.close()
            raise Broken(response) from error
        if not chunk:
            return response
        await response.write(chunk)
        tail = (tail + chunk[-4:])[-4:]


class Broken(Exception):
    """The upstream was lost in mid-answer; `response` has ended as well as it can."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__("the upstream was lost in mid-answer")
        self.response = response


def error_body(message: str, code: str, kind: str = "server_error") -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(status: HTTPStatus, message: str, code: str, *, retry_after: int | None = None) -> web.Response:
    """Return an error of the activator's own."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else None
    return web.json_response(error_body(message, code, kind), status=status, headers=headers)


async def fail(begun: web.StreamResponse | None, refused: web.Response) -> web.StreamResponse:
    """Return an error as an answer, or as the last event of the stream that has begun."""
    if begun is None:
        return refused
    with contextlib.suppress(ConnectionError):
        await begun.write(_event(json.loads(refused.text or "{}")))
    return begun


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


async def _error_of(upstream: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the error that an upstream answered with, or one that names its status."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, RecursionError):
        body = json.loads(await upstream.content.read(_ERROR_BYTES))
        if isinstance(body, dict) and body.get("error"):
            return body
    return error_body(f"The engine answered with status {upstream.status}, and no stream.", "engine_refused")
