"""The engine of one request: the targets of its route, asked in the order of the route's strategy.

What fails before its first token is followed by the next target, within the route's deadline; then by what was said before, or by
an apology. What each call took is in the request's record.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from services.answer import as_events, spoken
from services.backends import THEIRS
from services.errors import EngineRefused, EngineUnavailable, Overloaded, Unavailable
from services.meter import speaks
from services.telemetry import log
from services.terms import Target
from targets.fallback import NoTargetLeft, Passed
from targets.fallback import Target as Attempted

if TYPE_CHECKING:
    from services.backends import Backends
    from services.meter import Call
    from services.routing import Route
    from services.telemetry import Record
    from targets.load import Flight

REPETITION = {"min_pattern_size": 2, "max_pattern_size": 64, "min_count": 4}
"""In tokens: vLLM ends an answer that says so much so often without a break."""
SPARES = frozenset({"cache", "apology"})
"""What is said where no target answers: an answer of before, or an apology."""
_OWN = Target()
_SHUT_OUT = frozenset({401, 403})


class Asked:
    """Answers one request, and says in its record who did.

    `question` is what strategies weigh, `user` keeps to one target by weight, `spare` is said when nothing else answers.
    """

    def __init__(
        self,
        backends: Backends,
        route: Route,
        record: Record,
        *,
        question: str = "",
        user: str | None = None,
        spare: dict[str, Any] | None = None,
    ) -> None:
        self._backends, self._route, self._record, self._before = backends, route, record, spare
        self._question, self._user = question, user
        self._call: Call | None = None

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer; raises EkibenError."""
        with self._charged():
            if (told := self._route.targets) is None:
                return await self._complete(_OWN, path, payload)
            by_name, attempted = self._order(payload)
            attempts, deadline = self._backends.attempts(told)

            def ask(attempt: Attempted, left: float | None) -> Awaitable[dict[str, Any]]:
                return self._tried(attempt, by_name.get(attempt.name), path, payload, left)

            try:
                answered, body = await attempts.answer(attempted, ask, deadline)
            except NoTargetLeft as error:
                raise _nobody(error) from error
            self._note(answered, payload)
            return body

    async def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events; raises EkibenError, also in mid-stream."""
        with self._charged():
            if (told := self._route.targets) is None:
                async with aclosing(self._stream(_OWN, path, payload)) as events:
                    async for event in events:
                        yield event
                return
            by_name, attempted = self._order(payload)
            attempts, deadline = self._backends.attempts(told)

            def ask(attempt: Attempted, left: float | None) -> AsyncGenerator[dict[str, Any]]:
                return self._tried_stream(attempt, by_name.get(attempt.name), path, payload, left)

            try:
                began = await attempts.stream(attempted, ask, deadline, whole=False)
            except NoTargetLeft as error:
                raise _nobody(error) from error
            async with began:
                self._note(began.target, payload)
                try:
                    async for event in began:
                        yield event
                except EngineRefused as error:
                    if error.status in THEIRS:  # its message is about us, and not for the caller
                        raise EngineUnavailable("What served this model was lost in mid-stream.") from error
                    raise

    async def _tried(
        self, attempt: Attempted, target: Target | None, path: str, payload: dict[str, Any], left: float | None
    ) -> dict[str, Any]:
        if target is None:
            return self._spare(attempt.name, payload)
        flight = self._flight(attempt.name, target)
        try:
            body = await self._complete(target, path, payload, left)
            flight.first_token()
            flight.end()
            return body
        finally:
            flight.end(whole=False)

    async def _tried_stream(
        self, attempt: Attempted, target: Target | None, path: str, payload: dict[str, Any], left: float | None
    ) -> AsyncGenerator[dict[str, Any]]:
        if target is None:
            for event in as_events(self._spare(attempt.name, payload), keep_usage=True):
                yield event
            return
        flight = self._flight(attempt.name, target)
        try:
            async with aclosing(_from_first_token(self._stream(target, path, payload, left))) as events:
                async for event in events:
                    flight.first_token()
                    yield event
            flight.end()
        finally:
            flight.end(whole=False)

    def _flight(self, name: str, target: Target) -> Flight:
        waking = target.upstream is None and self._backends.waking_seconds > 0
        return self._backends.knowledge.load(name).begin(measured=not waking)

    async def _complete(self, target: Target, path: str, payload: dict[str, Any], left: float | None = None) -> dict[str, Any]:
        async with self._backends.place(self._route.caller.tenant, target, left):
            with self._calling(target, payload) as call:
                body = await self._backends.server(target).complete(path, self._for(target, payload))
                call.body(body)
            return self._shown(body)

    async def _stream(
        self, target: Target, path: str, payload: dict[str, Any], left: float | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        async with self._backends.place(self._route.caller.tenant, target, left):
            with self._calling(target, payload) as call:
                async with aclosing(self._backends.server(target).stream(path, self._for(target, payload))) as events:
                    async for event in events:
                        call.event(event)
                        yield self._shown(event)

    @contextmanager
    def _calling(self, target: Target, payload: dict[str, Any]) -> Generator[Call]:
        self._call = call = self._record.begin(payload, target.price)
        try:
            yield call
        except EngineRefused as error:
            self._call = None
            if target.upstream is None and error.status in _SHUT_OUT:
                log.error("the engine refuses this gateway: EKIBEN_ENGINE_KEY differs there", status=error.status)
                raise EngineUnavailable("The engine does not let this gateway in.") from error
            raise
        except Exception:
            self._call = None
            raise

    @contextmanager
    def _charged(self) -> Generator[None]:
        """A caller who leaves pays for the prompt that an engine was reading for him."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            if self._call is not None:
                self._call.worked = True
            raise

    def _order(self, payload: dict[str, Any]) -> tuple[Mapping[str, Target], Sequence[Attempted]]:
        told = self._route.targets
        order = self._backends.knowledge.order(self._route, payload, question=self._question, user=self._user)
        spares = ["cache"] if self._before is not None else []
        if told is not None and told.apology is not None:
            spares.append("apology")
        targets = [Attempted(name, self._route.adapter if target.upstream is None else None) for name, target in order]
        return dict(order), [*targets, *(Attempted(name, local=True) for name in spares)]

    def _spare(self, name: str, payload: dict[str, Any]) -> dict[str, Any]:
        self._call = None
        if name == "cache":
            if self._before is None:
                raise Passed
            return self._before
        told = self._route.targets
        about = {name: version for name, version in self._route.versions().items() if version is not None}
        return {**spoken(self._route.name, (told.apology if told else None) or "", payload), "ekiben": about}

    def _for(self, target: Target, payload: dict[str, Any]) -> dict[str, Any]:
        if target.model is not None:
            return {**payload, "model": target.model}
        repeats = self._route.stop_on_repetition and "messages" in payload
        return {**payload, "repetition_detection": REPETITION} if repeats else payload

    def _shown(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return what an engine said with reasons of ending that OpenAI's clients know."""
        for choice in event.get("choices") or ():
            if choice.get("finish_reason") == "repetition":
                choice |= {"finish_reason": "length", "stop_reason": "repetition"}
                self._backends.telemetry.stopped_early("repetition")
        return event

    def _note(self, answered: Attempted, payload: dict[str, Any]) -> None:
        self._record.target = answered.name
        if answered.name == "cache":
            self._record.headers["x-ekiben-cache"] = "stale"
        if not answered.local:
            self._backends.knowledge.sent(self._route, answered.name, payload)


class Aside:
    """The own engine, asked on the way of a request for a verdict or other words: in its turn, and at the request's cost."""

    def __init__(self, backends: Backends, route: Route, record: Record) -> None:
        self._backends, self._route, self._record = backends, route, record

    @property
    def waking_seconds(self) -> float:
        """How much longer than usual its next answer may take: it may sleep."""
        return self._backends.waking_seconds

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer; raises EkibenError."""
        async with self._backends.place(self._route.caller.tenant, _OWN):
            call = self._record.begin(payload)
            body = await self._backends.own.complete(path, payload)
            call.body(body)
            return body


async def _from_first_token(events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[dict[str, Any]]:
    """Yield events once one of them says something: servers send a role at once and the first word when they have it."""
    held: list[dict[str, Any]] = []
    spoke = False
    async with aclosing(events):
        async for event in events:
            if spoke:
                yield event
                continue
            held.append(event)
            spoke = any(speaks(choice) or choice.get("finish_reason") for choice in event.get("choices") or ())
            if spoke:
                for one in held:
                    yield one
        if not spoke:
            for one in held:
                yield one


def _nobody(error: NoTargetLeft) -> Unavailable:
    after = None if error.retry_after is None else max(1, round(error.retry_after))
    full = [outcome.error for outcome in error.outcomes if isinstance(outcome.error, Overloaded)]
    if full and len(full) == len(error.outcomes):
        return Overloaded(full[-1].message, retry_after=after or 1)
    late = "in time " if error.late else ""
    found = EngineUnavailable(f"Nothing that serves this model answered {late}({len(error.outcomes)} attempts).")
    found.retry_after = after or found.retry_after
    return found
