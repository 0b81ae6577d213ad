"""One streaming HTTP client to the engine. Closing a stream closes its connection, and so frees the engine.

Requests are repeated only while connecting: once the engine may have seen one, it is not sent again. An engine that sleeps is
waited for, at what holds the request until it has started.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp

from services.errors import EngineRefused, EngineUnavailable

CONNECT_ATTEMPTS = 3
GATE_SECONDS = 10.0
"""How long what stands before an engine that sleeps may itself be away, as when it is started anew."""
_CLIENT_ERRORS = range(400, 500)
_GATES = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""With these, what stands before an engine says that it is away; vLLM has none of them for an adapter."""


class EngineClient:
    """A client of an OpenAI-compatible server, vLLM's or another; use as an async context manager.

    `key` is sent as a bearer token; `health` is the path that answers 2xx while the server is well, which it is without one.
    `silence` and `wake` are the most seconds between two pieces of an answer, and until its head; None is for ever.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        health: str | None = "/health",
        silence: float | None = None,
        wake: float | None = None,
    ) -> None:
        self._silence, self._wake = silence, wake
        self._base_url, self._key, self._health = base_url.rstrip("/"), key, health
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # No total time-out: a stream lasts as long as it lasts, and the caller's leaving ends it.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._silence)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else None
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0), headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the engine's whole answer; raises EngineRefused or EngineUnavailable."""
        async with self._post(path, payload) as response:
            try:
                body = await response.json()
            except (aiohttp.ClientError, ValueError) as error:
                raise EngineUnavailable("The engine was lost before it had answered.") from error
            if _checked(body).get("error"):
                raise _refusal(body, 500)  # some say it with a 200
            return body

    async def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the engine's events; raises EngineRefused or EngineUnavailable, also in mid-stream."""
        async with self._post(path, payload) as response:
            done = False
            async for data in sse_data(response.content.iter_any()):
                if data == b"[DONE]":
                    done = True
                    break
                try:
                    event = _checked(json.loads(data))
                except ValueError as error:
                    raise EngineUnavailable("The engine said what is no event.") from error
                if event.get("error"):
                    raise _refusal(event, 500)
                yield event
            if not done:
                raise EngineUnavailable("The engine was lost in mid-stream.")

    async def healthy(self) -> bool:
        """Whether the engine answers its health check within two seconds."""
        if self._health is None:
            return True
        try:
            async with self._open().get(f"{self._base_url}{self._health}", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return response.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def metrics(self) -> str:
        """Return the engine's metrics in Prometheus' text format; empty when it is not there."""
        try:
            async with self._open().get(f"{self._base_url}/metrics", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return ""

    async def adapters(self) -> frozenset[str]:
        """Return the names under which the engine holds adapters; raises EngineUnavailable."""
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with self._open().get(f"{self._base_url}/v1/models", timeout=timeout) as response:
                body = await response.json()
            return frozenset(card["id"] for card in body["data"] if card.get("parent") is not None)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineUnavailable("The engine is not up; it may still be starting.") from error

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter while others answer; a name that is there already is left alone. Raises EngineRefused and its kin."""
        await self._command("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, done="already been loaded")

    async def unload_adapter(self, name: str) -> None:
        """Let go of an adapter: requests under way finish, later ones are refused. Raises EngineRefused and its kin."""
        await self._command("/v1/unload_lora_adapter", {"lora_name": name}, done="cannot be found")

    async def _command(self, path: str, payload: dict[str, Any], *, done: str) -> None:
        response = await self._connect(path, payload)
        try:
            said = await response.text()
        except aiohttp.ClientError as error:
            raise EngineUnavailable("The engine was lost in mid-answer.") from error
        finally:
            response.close()
        if response.status in _GATES:
            raise EngineUnavailable("The engine is not up; it may still be starting.")
        if not response.ok and done not in said:
            # vLLM answers 500 for every adapter that it cannot load: the reason matters, and it is no reason to try again.
            raise EngineRefused(_message(said), status=response.status, code="engine_refused")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            msg = "EngineClient is used outside of its context"
            raise RuntimeError(msg)
        return self._session

    @asynccontextmanager
    async def _post(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[aiohttp.ClientResponse]:
        response = await self._connect(path, payload)
        try:
            if not response.ok:
                try:
                    body = await response.json(content_type=None)
                except (aiohttp.ClientError, ValueError):
                    body = {}
                raise _refusal(body, response.status, response.headers.get("retry-after"))
            yield response
        except aiohttp.ClientError as error:
            raise EngineUnavailable("The engine was lost in mid-answer.") from error
        finally:
            response.close()  # not release(): an unread answer must not be drained, but dropped

    async def _connect(self, path: str, payload: dict[str, Any]) -> aiohttp.ClientResponse:
        """Return the head of an answer."""
        try:
            async with asyncio.timeout(self._wake):
                return await self._sent(path, payload)
        except TimeoutError as error:
            raise EngineUnavailable(f"The engine did not answer within {self._wake:g} s; try again.") from error

    async def _sent(self, path: str, payload: dict[str, Any]) -> aiohttp.ClientResponse:
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                return await self._open().post(f"{self._base_url}{path}", json=payload)
            except aiohttp.ClientConnectorError as error:
                waking = self._wake is not None and time.monotonic() - began < GATE_SECONDS
                if attempt >= CONNECT_ATTEMPTS and not waking:
                    raise EngineUnavailable("The engine is not up; it may still be starting.") from error
                await asyncio.sleep(min(0.1 * attempt, 1))
            except aiohttp.ClientError as error:
                raise EngineUnavailable("The engine was lost before it had answered.") from error
        raise AssertionError


class EngineWatch:
    """Remembers whether the engine was ever up, and since when it has been away."""

    def __init__(self, engine: EngineClient, grace_seconds: float) -> None:
        self.engine = engine
        self._grace = grace_seconds
        self._was_up = False
        self._away_since: float | None = None

    async def ready(self) -> bool:
        """Whether the engine answers now."""
        healthy = await self.engine.healthy()
        if healthy:
            self._was_up, self._away_since = True, None
        elif self._was_up and self._away_since is None:
            self._away_since = time.monotonic()
        return healthy

    async def alive(self) -> bool:
        """False once an engine that was up has been away for longer than the grace: then a restart is due."""
        return await self.ready() or self._away_since is None or time.monotonic() - self._away_since < self._grace


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each SSE event, however the bytes were cut; comments, and an event without its end, are dropped."""
    buffer = b""
    async for chunk in chunks:
        buffer = (buffer + chunk).replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines)


def _checked(body: Any) -> dict[str, Any]:
    """Return what an engine said; servers of others may say anything."""
    if not isinstance(body, dict):
        raise EngineUnavailable("The engine said what is no answer.")
    return body


def _message(said: str) -> str:
    try:
        body = json.loads(said)
        return str(body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "The engine refused the adapter."


def _refusal(body: Any, status: int, retry_after: str | None = None) -> EngineRefused | EngineUnavailable:
    error = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(error, dict):
        error = {"message": error}
    message = str(error.get("message") or "The engine refused the request.")
    code = error.get("code")
    if isinstance(code, int) and status not in _CLIENT_ERRORS:
        status = code
    wait = int(retry_after) if retry_after and retry_after.isdecimal() else None
    if status not in _CLIENT_ERRORS:
        away = status == HTTPStatus.SERVICE_UNAVAILABLE
        failed = EngineUnavailable("The engine is not up; try again." if away else "The engine failed on this request.")
        failed.retry_after = wait or failed.retry_after
        return failed
    lowered = message.lower()
    too_long = "context length" in lowered or "max_model_len" in lowered or "maximum model length" in lowered
    if too_long:
        return EngineRefused(message, status=400, param=error.get("param"), code="context_length_exceeded")
    return EngineRefused(message, status=status, param=error.get("param"), code="engine_refused", retry_after=wait)
