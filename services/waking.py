"""An engine that may be at zero, behind what holds requests and starts it: an activator, Knative, KEDA.

Nothing is asked of it but what callers ask. Whether it is awake is known by what it says: from its first word on, as long as
requests are under way, it cannot fall asleep. Until that word it is waking, and whoever waits for it is given longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any, Protocol

from services.errors import EngineRefused, EngineUnavailable

IDLE_SECONDS = 1.0
"""For so long after its last answer an engine is surely up."""


class Engine(Protocol):
    """What is needed of the engine."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]: ...  # noqa: D102
    def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]: ...  # noqa: D102


class Adapters(Protocol):
    """What is needed of the adapters at run time."""

    async def bring(self, label: str) -> bool:
        """Load what the engine has not; False where that is no adapter of ours."""
        ...


class SleepingEngine:
    """Asks an engine that may have to wake first, which takes at most `wake_seconds`, and brings it the adapters that it lacks.

    An engine that woke has the adapters that were packed. It answers 404 for another; then the adapters are brought, and the
    request, of which nothing was answered, is sent once more.
    """

    def __init__(
        self, engine: Engine, adapters: Adapters, wake_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._adapters, self._wake_seconds, self._clock = engine, adapters, wake_seconds, clock
        self._awake = False
        self._under_way = 0
        self._idle_since = 0.0
        self.told: Callable[[float], None] = lambda _seconds: None
        """Hears how much longer is to be waited for it, whenever that changes."""

    @property
    def waking_seconds(self) -> float:
        """How much longer than usual its next answer may take; 0 while it is awake."""
        idle = self._under_way == 0 and self._clock() - self._idle_since > IDLE_SECONDS
        return 0.0 if self._awake and not idle else self._wake_seconds

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer; raises EngineRefused or EngineUnavailable."""
        with self._request():
            try:
                return await self._whole(path, payload)
            except EngineRefused as error:
                await self._brought(error, payload)
            try:
                return await self._whole(path, payload)
            except EngineRefused as error:
                raise _still(error, payload) from error

    async def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events; raises EngineRefused or EngineUnavailable, also in mid-stream."""
        began = False
        with self._request():
            try:
                async with aclosing(self._events(path, payload)) as events:
                    async for event in events:
                        began = True
                        yield event
            except EngineRefused as error:
                if began:
                    raise
                await self._brought(error, payload)
            else:
                return
            try:
                async with aclosing(self._events(path, payload)) as events:
                    async for event in events:
                        yield event
            except EngineRefused as error:
                raise _still(error, payload) from error

    async def _whole(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        with self._heard_if_refused():
            body = await self._engine.complete(path, payload)
        self._is(awake=True)
        return body

    async def _events(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        with self._heard_if_refused():
            async with aclosing(self._engine.stream(path, payload)) as events:
                try:
                    async with asyncio.timeout(self._wake_seconds):
                        event = await anext(events, None)
                except TimeoutError as error:  # its head may be what said that it is to be waited for
                    raise EngineUnavailable(f"The engine did not answer within {self._wake_seconds:g} s; try again.") from error
                while event is not None:
                    self._is(awake=True)
                    yield event
                    event = await anext(events, None)

    async def _brought(self, error: EngineRefused, payload: dict[str, Any]) -> None:
        """Bring the adapter that an engine does not know; raises the error where that is not what is wrong."""
        if error.status != HTTPStatus.NOT_FOUND or not await self._adapters.bring(str(payload.get("model"))):
            raise error

    @contextmanager
    def _request(self) -> Generator[None]:
        if self._under_way == 0 and self.waking_seconds:
            self._is(awake=False)
        self._under_way += 1
        try:
            yield
        except EngineUnavailable:
            self._is(awake=False)
            raise
        finally:
            self._under_way -= 1
            self._idle_since = self._clock()

    @contextmanager
    def _heard_if_refused(self) -> Generator[None]:
        try:
            yield
        except EngineRefused:
            self._is(awake=True)
            raise

    def _is(self, *, awake: bool) -> None:
        if awake is not self._awake:
            self._awake = awake
            self.told(0.0 if awake else self._wake_seconds)


def _still(error: EngineRefused, payload: dict[str, Any]) -> Exception:
    if error.status != HTTPStatus.NOT_FOUND:
        return error
    return EngineUnavailable(f"Adapter {payload.get('model')} is being loaded; try again.")
