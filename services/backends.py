"""The servers that answer: the box's own engine with its queue, and upstreams whose health is looked after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from accounts.admission import Admission
from accounts.admission import Overloaded as NoPlace
from services.errors import EngineRefused, Overloaded, Unavailable
from services.targeting import OWN, Knowledge
from services.waking import SleepingEngine
from targets.breaker import Breakers
from targets.fallback import Attempts, Deadline, Outcome, Retries, Verdict
from targets.fallback import Target as Attempted

if TYPE_CHECKING:
    from services.telemetry import Telemetry
    from services.terms import Target, Targets

HEALTH_SECONDS = 5.0
THEIRS = frozenset({401, 402, 403, 404, 408, 409, 425, 429})
"""Statuses of a server that say nothing about the request, but about our standing there."""


QUEUED = 0.8
"""Share of an attempt's time that it may wait for its turn."""


class Server(Protocol):
    """What is needed of a server."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        ...

    def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events."""
        ...


class Upstream(Server, Protocol):
    """A server whose health is looked after."""

    async def healthy(self) -> bool:
        """Whether it is well."""
        ...


@dataclass
class Backends:
    """The servers, and what is known of them; `hardness` estimates from 0 to 1 how hard a question is."""

    own: Server
    telemetry: Telemetry
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    admission: Admission | None = None
    hardness: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        self.knowledge = Knowledge(self.hardness)
        self._breakers = Breakers(told=self.telemetry.circuit)

    @property
    def waking_seconds(self) -> float:
        """How much longer than usual the box's own engine may take, which sleeps or starts; 0 while it is awake."""
        return self.own.waking_seconds if isinstance(self.own, SleepingEngine) else 0.0

    @asynccontextmanager
    async def watched(self, every_seconds: float = HEALTH_SECONDS) -> AsyncGenerator[None]:
        """Look after the health of upstreams until the block is left."""
        tasks = [
            asyncio.create_task(self._watch(name, server, every_seconds), name=f"health-{name}")
            for name, server in self.upstreams.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, name: str, server: Upstream, every_seconds: float) -> None:
        while True:
            self.knowledge.checked(name, healthy=await server.healthy())
            await asyncio.sleep(every_seconds)

    def server(self, target: Target) -> Server:
        """Return the server of a target."""
        return self.own if target.upstream is None else self.upstreams[target.upstream]

    @asynccontextmanager
    async def place(self, tenant: str, target: Target, left: float | None = None) -> AsyncGenerator[None]:
        """Wait for a place at a target, where it is the box's own engine; raises Overloaded.

        With `left` seconds for the whole attempt a part of them is kept for the engine: a queue that is long is no fault of its.
        """
        if self.admission is None or target.upstream is not None:
            yield
            return
        try:
            async with self.admission.slot(tenant, left and QUEUED * left) as waited:
                self.telemetry.waited(waited)
                yield
        except NoPlace as error:
            self.telemetry.shed(error.reason)
            raise Overloaded(str(error), retry_after=error.retry_after_seconds) from error

    def attempts(self, told: Targets) -> tuple[Attempts, Deadline]:
        """Return how targets are asked, and until when: none may use up the time of those after it.

        An engine that is waking is waited for where nobody else could answer; else the next is asked at its usual time.
        """
        alone = all(target.upstream is None for target in told.of)
        longer = self.waking_seconds if alone else 0.0
        share = told.deadline_seconds / len(told.of) if len(told.of) > 1 else None
        patience = told.patience_seconds or share
        retries = Retries(most=told.retries, patience=patience and patience + longer)
        attempts = Attempts(self._breakers, retries, _judge, self._waking, self._told)
        return attempts, Deadline(told.deadline_seconds + longer)

    def _waking(self, target: Attempted) -> bool:
        return target.name == OWN and self.waking_seconds > 0

    def _told(self, outcome: Outcome) -> None:
        self.telemetry.attempt(outcome.target.name, outcome.reason)


def _judge(error: Exception) -> Verdict:
    if isinstance(error, EngineRefused) and error.status in THEIRS:
        return Verdict("next", retry_after=error.retry_after)
    if isinstance(error, Overloaded):
        return Verdict("next", counts=False, retry_after=error.retry_after)
    if isinstance(error, Unavailable | ConnectionError | TimeoutError):
        return Verdict("retry")
    return Verdict("stop")
