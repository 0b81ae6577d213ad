"""A reverse proxy before an upstream that sleeps (a whole box, or its engine alone): it holds requests while that starts.

A request is read whole, up to a cap, and is sent once: again only when the connection was refused, before a byte of it was
sent. Answers pass byte by byte at the caller's pace; a caller who leaves closes the connection to the upstream. A caller who
asked for a stream hears `: waiting` while he waits; an error after that comes as an event.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from deploy.activator_metrics import CONTENT_TYPE, ActivatorMetrics
from deploy.lifecycle import Lifecycle, Limits, NotAwake, Starter
from deploy.relay import Broken, Waiting, error_response, fail, open_client, relay, send, wants_stream

log = structlog.get_logger("ekiben")
PREFIX = "/activator"
METRICS = "/metrics"
_PROBE = aiohttp.ClientTimeout(total=2)
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""So a connection fails for want of what this machine has, and not because the upstream refuses it."""


@dataclass(frozen=True)
class Front:
    """What stands behind the activator, and what it answers by itself."""

    upstream: str
    """URL of the upstream, without a path."""
    ready_path: str = "/health"
    """Answers 200 once the upstream is ready."""
    health_paths: frozenset[str] = frozenset({"/health"})
    """Answered with 200 by the activator, so that no health check wakes the upstream or keeps it awake."""
    quiet_paths: frozenset[str] = frozenset({METRICS})
    """Passed on to an upstream that is awake, without keeping it so; asleep, /metrics is an empty page, another one a 503."""
    keepalive_seconds: float = 10.0
    """How often a caller who asked for a stream is told that he waits."""
    max_body_bytes: int = 34 * 2**20


class Activator:
    """The proxy and the life of its upstream, while its context is open; `app` serves it, `metrics_app` its metrics alone."""

    def __init__(self, front: Front, starter: Starter, limits: Limits | None = None, *, metrics_apart: bool = False) -> None:
        self._front, self._metrics = front, ActivatorMetrics()
        self._client: aiohttp.ClientSession | None = None
        self._last_answer = "none"
        self._life = Lifecycle(starter, self._probe, limits, metrics=self._metrics, said=lambda: self._last_answer)
        self.app = web.Application(client_max_size=front.max_body_bytes)
        for path in sorted({f"{PREFIX}/health", *front.health_paths}):
            self.app.router.add_get(path, self._health)
        if not metrics_apart:
            self.app.router.add_get(f"{PREFIX}{METRICS}", self._page)
        self.app.router.add_route("*", "/{path:.*}", self._pass)
        self.metrics_app = web.Application()
        for path in (METRICS, f"{PREFIX}{METRICS}"):
            self.metrics_app.router.add_get(path, self._page)

    @property
    def upstream(self) -> str:
        """URL of what stands behind."""
        return self._front.upstream

    @property
    def life(self) -> Lifecycle:
        """The life of the upstream."""
        return self._life

    async def __aenter__(self) -> Self:
        self._client = open_client()
        await self._life.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.__aexit__()
        await self._open().close()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "upstream": self._life.state})

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if not request.raw_path.startswith("/"):
            return error_response(HTTPStatus.BAD_REQUEST, "Ask for a path of this server.", "bad_target")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return error_response(HTTPStatus.NOT_IMPLEMENTED, "WebSockets do not pass here.", "no_upgrade")
        quiet = request.path in self._front.quiet_paths
        if quiet and self._life.state != "awake":
            if request.path == METRICS:
                return web.Response(body=b"", headers={"Content-Type": CONTENT_TYPE})
            return self._unavailable("The engine is asleep.", 5)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self._metrics.refused.labels("body_too_large").inc()
            message = f"The body is over {self._front.max_body_bytes} bytes."
            refused = error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "request_too_large")
            refused.force_close()
            return refused
        if quiet:
            return await self._quietly(request, body)
        with self._life.lease():
            return await self._forward(request, body)

    async def _forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        seconds = self._front.keepalive_seconds if wants_stream(request, body) else None
        waiting = Waiting(request, seconds, held=lambda: self._life.state != "awake")
        try:
            async with waiting:
                upstream = await self._ask(request, body)
        except NotAwake as error:
            self._metrics.refused.labels(error.reason).inc()
            code = "overloaded" if error.reason == "queue_full" else "engine_unavailable"
            return await fail(waiting.begun, self._unavailable(error.message, error.retry_after, code))
        except (aiohttp.ClientError, TimeoutError) as error:
            return await fail(waiting.begun, self._lost(error))
        try:
            return await relay(request, upstream, waiting.begun)
        except Broken as error:
            self._metrics.refused.labels("upstream_lost").inc()
            log.warning("upstream lost in mid-answer")
            return error.response
        finally:
            upstream.close()

    async def _ask(self, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
        """Wait for the upstream and send it the request, again only where nothing was sent; raises NotAwake and ClientError."""
        deadline = self._life.deadline()
        while True:
            generation = await self._life.awake(deadline)
            try:
                return await send(self._open(), self._front.upstream, request, body)
            except aiohttp.ClientConnectorError as error:
                if error.os_error.errno in _OURS:
                    raise NotAwake("The activator has no connection left.", "no_connection", 1) from error
                if not isinstance(error, aiohttp.ClientConnectorDNSError):
                    self._life.lost(generation)
                elif not await self._life.doubted(generation):
                    raise NotAwake("The engine's name cannot be looked up.", "no_connection", 1) from error
            except aiohttp.ConnectionTimeoutError:
                await self._life.doubted(generation)
                if self._life.left(deadline) <= 0:
                    raise NotAwake("The engine cannot be reached.", "held_too_long", 5) from None

    async def _quietly(self, request: web.Request, body: bytes) -> web.StreamResponse:
        try:
            upstream = await send(self._open(), self._front.upstream, request, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._lost(error)
        try:
            return await relay(request, upstream, None)
        except Broken as error:
            return error.response
        finally:
            upstream.close()

    def _lost(self, error: BaseException) -> web.Response:
        self._metrics.refused.labels("upstream_lost").inc()
        log.warning("upstream lost before its answer", problem=str(error) or type(error).__name__)
        return error_response(HTTPStatus.BAD_GATEWAY, "The engine was lost before it had answered.", "engine_lost")

    def _unavailable(self, message: str, retry_after: int, code: str = "engine_unavailable") -> web.Response:
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, message, code, retry_after=retry_after)

    async def _probe(self) -> bool:
        url = URL(self._front.upstream + self._front.ready_path, encoded=True)
        try:
            async with self._open().get(url, timeout=_PROBE, allow_redirects=False) as response:
                self._last_answer = f"{self._front.ready_path}: {response.status} {response.reason or ''}".strip()
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError) as error:
            self._last_answer = f"{self._front.ready_path}: {error or type(error).__name__}"
            return False

    def _open(self) -> aiohttp.ClientSession:
        if self._client is None:
            raise RuntimeError("Activator is used outside of its context")
        return self._client
