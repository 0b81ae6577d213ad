"""What answers a route: the box's own engine, or servers that speak OpenAI's API, asked in the order of the route's strategy.

What fails before its first token is followed by the next target, within the route's deadline. A request waits for its turn at
the box's own engine, and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from accounts.admission import Admission
from accounts.admission import Overloaded as NoPlace
from services.answer import as_events
from services.errors import EngineRefused, EngineUnavailable, Overloaded, Unavailable
from services.protocol import plain_text
from services.terms import Price, Target
from targets.affinity import PrefixAffinity, prefix_blocks
from targets.breaker import Breakers
from targets.choice import Candidate, by_complexity, cheapest, fixed, least_busy, weighted
from targets.fallback import Attempts, Deadline, DeadlinePassed, NoTargetLeft, Outcome, Passed, Retries, Verdict
from targets.fallback import Target as Attempted
from targets.load import Load

if TYPE_CHECKING:
    from services.routing import Route
    from services.telemetry import Record, Telemetry

OWN = "engine"
"""The name of the box's own engine among targets."""
HEALTH_SECONDS = 5.0
CHARACTERS_PER_TOKEN = 3
"""About: English has four, Chinese one to two. For estimates before a request; what counts is the engine's own count after it."""
ANSWER_TOKENS = 256
"""Of an answer whose longest length nobody names; an estimate too."""
REPETITION = {"min_pattern_size": 2, "max_pattern_size": 64, "min_count": 4}
"""In tokens: vLLM ends an answer that says so much so often without a break."""
# What says nothing about the request, but about our standing there.
_THEIRS = frozenset({401, 402, 403, 404, 408, 409, 425, 429})

_OWN = Target()


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
class _Known:
    """What this process knows of a target."""

    load: Load = field(default_factory=Load)
    healthy: bool = True


@dataclass
class Backends:
    """The servers, and what is known of them; `hardness` estimates from 0 to 1 how hard a question is."""

    own: Server
    telemetry: Telemetry
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    admission: Admission | None = None
    hardness: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._affinity: dict[str, PrefixAffinity] = {}
        self._attempts = Attempts(Breakers(told=self.telemetry.circuit), judge=_judge, told=self._told)

    def asked(
        self, route: Route, record: Record, *, question: str = "", user: str | None = None, spare: dict[str, Any] | None = None
    ) -> Asked:
        """Return what answers one request: `user` keeps to one target by weight, `spare` is said when nothing else answers."""
        return Asked(self, route, record, question, user, spare)

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Look after the health of upstreams until the block is left."""
        tasks = [asyncio.create_task(self._watch(name, server), name=f"health-{name}") for name, server in self.upstreams.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, name: str, server: Upstream) -> None:
        while True:
            healthy = await server.healthy()
            for target, known in self._known.items():
                if target.partition("/")[0] == name:
                    if healthy and not known.healthy:
                        for affinity in self._affinity.values():
                            affinity.forget(target)  # it may have begun anew, with an empty cache
                    known.healthy = healthy
            await asyncio.sleep(HEALTH_SECONDS)

    def _told(self, outcome: Outcome) -> None:
        self.telemetry.attempt(outcome.target.name, outcome.reason)

    def known(self, name: str) -> _Known:
        """Return what is known of a target."""
        return self._known.setdefault(name, _Known())

    def affinity(self, route: str) -> PrefixAffinity:
        """Return which target of a route was sent which prefixes."""
        return self._affinity.setdefault(route, PrefixAffinity())

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncGenerator[None]:
        """Wait for a place at the box's own engine; raises Overloaded."""
        if self.admission is None:
            yield
            return
        try:
            async with self.admission.slot(tenant) as waited:
                self.telemetry.waited(waited)
                yield
        except NoPlace as error:
            self.telemetry.shed(error.reason)
            raise Overloaded(str(error), retry_after=error.retry_after_seconds) from error

    def attempts(self, retries: int) -> Attempts:
        """Return how targets are asked."""
        told = self._attempts
        return Attempts(told.breakers, Retries(most=retries), told.judge, told.told)


class Asked:
    """The engine of one request: asks the targets of its route, and says in its record which one answered."""

    def __init__(
        self, backends: Backends, route: Route, record: Record, question: str, user: str | None, spare: dict[str, Any] | None
    ) -> None:
        self._backends, self._route, self._record, self._before = backends, route, record, spare
        self._question, self._user = question, user

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer; raises EkibenError."""
        if self._route.targets is None:
            async with self._backends.place(self._route.caller.tenant):
                return self._shown(await self._backends.own.complete(path, self._for(_OWN, payload)))
        order = self._order(payload)
        by_name = dict(order)

        async def ask(attempted: Attempted, _left: float | None) -> dict[str, Any]:
            if attempted.local:
                return await self._spare(attempted.name, payload)
            target = by_name[attempted.name]
            flight = self._backends.known(attempted.name).load.begin()
            try:
                async with self._place(target):
                    body = await self._server(target).complete(path, self._for(target, payload))
                flight.first_token()
                flight.end()
                return self._shown(body)
            finally:
                flight.end(whole=False)

        try:
            attempts = self._backends.attempts(self._route.targets.retries)
            answered, body = await attempts.answer(self._attempted(order), ask, Deadline(self._route.targets.deadline_seconds))
        except NoTargetLeft as error:
            raise _nobody(error) from error
        self._note(answered, by_name, payload)
        return body

    async def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events; raises EkibenError, also in mid-stream."""
        if self._route.targets is None:
            async with (
                self._backends.place(self._route.caller.tenant),
                aclosing(self._backends.own.stream(path, self._for(_OWN, payload))) as events,
            ):
                async for event in events:
                    yield self._shown(event)
            return
        order = self._order(payload)
        by_name = dict(order)

        async def ask(attempted: Attempted, _left: float | None) -> AsyncGenerator[dict[str, Any]]:
            if attempted.local:
                for event in as_events(await self._spare(attempted.name, payload), keep_usage=True):
                    yield event
                return
            target = by_name[attempted.name]
            flight = self._backends.known(attempted.name).load.begin()
            try:
                async with (
                    self._place(target),
                    aclosing(self._server(target).stream(path, self._for(target, payload))) as events,
                ):
                    async for event in events:
                        flight.first_token()
                        yield self._shown(event)
                flight.end()
            finally:
                flight.end(whole=False)

        attempts = self._backends.attempts(self._route.targets.retries)
        try:
            began = await attempts.stream(self._attempted(order), ask, Deadline(self._route.targets.deadline_seconds))
        except NoTargetLeft as error:
            raise _nobody(error) from error
        async with began:
            self._note(began.target, by_name, payload)
            try:
                async for event in began:
                    yield event
            except DeadlinePassed as error:
                raise EngineUnavailable("The answer was not whole by the route's deadline.") from error

    def _order(self, payload: dict[str, Any]) -> list[tuple[str, Target]]:
        told = self._route.targets
        assert told is not None  # noqa: S101  asked only where there are targets
        named = {named_of(target, self._route): target for target in told.of}
        candidates = [self._candidate(name, target) for name, target in named.items()]
        text = _prompt(payload)
        match told.strategy:
            case "fixed":
                order = fixed(candidates)
            case "weighted":
                order = weighted(candidates, f"{self._route.name}:{self._user}" if self._user else None)
            case "least-busy":
                order = least_busy(candidates)
            case "cheapest":
                tokens_out = payload.get("max_tokens") or payload.get("max_completion_tokens") or ANSWER_TOKENS
                order = cheapest(
                    candidates, tokens_in=len(text) / CHARACTERS_PER_TOKEN, tokens_out=tokens_out, budget=told.latency_seconds
                )
            case "complexity":
                score = self._backends.hardness(self._question) if self._backends.hardness else 0.0
                order = by_complexity(candidates, score, told.thresholds)
            case "affinity":
                order = self._backends.affinity(self._route.name).order(candidates, prefix_blocks(text, self._route.adapter))
        return [(candidate.name, named[candidate.name]) for candidate in order]

    def _candidate(self, name: str, target: Target) -> Candidate:
        known = self._backends.known(name)
        price = target.price or self._route.price
        return Candidate(
            name, weight=target.weight, price_in=float(price.prompt) / 1000, price_out=float(price.completion) / 1000,
            in_flight=known.load.in_flight, ttft=known.load.ttft, latency=known.load.latency, healthy=known.healthy,
        )  # fmt: skip

    def _attempted(self, order: Sequence[tuple[str, Target]]) -> list[Attempted]:
        told = self._route.targets
        spares = ["cache"] if self._before is not None else []
        if told is not None and told.apology is not None:
            spares.append("apology")
        targets = [Attempted(name, self._route.adapter if target.upstream is None else None) for name, target in order]
        return [*targets, *(Attempted(name, local=True) for name in spares)]

    async def _spare(self, name: str, payload: dict[str, Any]) -> dict[str, Any]:
        """What is said where no target answers: what was said before, or an apology."""
        if name == "cache":
            if self._before is None:
                raise Passed
            return self._before
        told = self._route.targets
        return spoken(self._route.name, (told.apology if told else None) or "", payload)

    @asynccontextmanager
    async def _place(self, target: Target) -> AsyncGenerator[None]:
        if target.upstream is not None:
            yield
            return
        async with self._backends.place(self._route.caller.tenant):
            yield

    def _server(self, target: Target) -> Server:
        return self._backends.own if target.upstream is None else self._backends.upstreams[target.upstream]

    def _for(self, target: Target, payload: dict[str, Any]) -> dict[str, Any]:
        if target.model is not None:
            return {**payload, "model": target.model}
        return (
            {**payload, "repetition_detection": REPETITION}
            if self._route.stop_on_repetition and "messages" in payload
            else payload
        )

    def _shown(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return what an engine said with reasons of ending that OpenAI's clients know."""
        for choice in event.get("choices", ()):
            if choice.get("finish_reason") == "repetition":
                choice |= {"finish_reason": "length", "stop_reason": "repetition"}
                self._backends.telemetry.stopped_early("repetition")
        return event

    def _note(self, answered: Attempted, by_name: Mapping[str, Target], payload: dict[str, Any]) -> None:
        self._record.target = answered.name
        target = by_name.get(answered.name)
        self._record.price = Price() if target is None else target.price
        told = self._route.targets
        if target is not None and told is not None and told.strategy == "affinity":
            blocks = prefix_blocks(_prompt(payload), self._route.adapter)
            self._backends.affinity(self._route.name).sent(answered.name, blocks)


def named_of(target: Target, route: Route) -> str:
    """Return the name under which a target is known, in metrics too."""
    return OWN if target.upstream is None else f"{target.upstream}/{target.model or route.engine_model}"


def spoken(model: str, text: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole answer that says `text`, by no model."""
    chat = "messages" in payload
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()), "model": model,
        "choices": [{"index": index, **said, "finish_reason": "stop"} for index in range(payload.get("n") or 1)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }  # fmt: skip


def _judge(error: Exception) -> Verdict:
    if isinstance(error, EngineRefused) and error.status in _THEIRS:
        return Verdict("next", retry_after=error.retry_after)
    if isinstance(error, Overloaded):
        return Verdict("next", counts=False, retry_after=error.retry_after)
    if isinstance(error, Unavailable | ConnectionError | TimeoutError):
        return Verdict("retry")
    return Verdict("stop")


def _nobody(error: NoTargetLeft) -> EngineUnavailable:
    late = "in time " if error.late else ""
    found = EngineUnavailable(f"Nothing that serves this model answered {late}({len(error.outcomes)} attempts).")
    if error.retry_after is not None:
        found.retry_after = max(1, round(error.retry_after))
    return found


def _prompt(payload: Mapping[str, Any]) -> str:
    if "messages" in payload:
        return "\n".join(plain_text(message) for message in payload["messages"])
    prompt = payload.get("prompt")
    return prompt if isinstance(prompt, str) else "\n".join(text for text in prompt or () if isinstance(text, str))
