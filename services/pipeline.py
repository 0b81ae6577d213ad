"""The way of a request, in order. It knows neither BentoML nor HTTP nor the environment.

1. the Route fixes every version              `Routes.find`
2. the trail can be written, limits and budgets have room, and hold the request as long as it lasts  `Accounting.request`
3. guards look at the input                   `Preparation.checked`
4. what was answered before is given again    `services.memory`: then 5 to 8 are left out
5. passages are retrieved, and guarded        `services.retrieval`
6. the prompt is rendered                     `Preparation.rendered`
7. the engine answers with the adapter, when there is a place; or another target does  `services.asked`
8. guards look at the answer                  `services.answer`
9. the answer is kept, for 4                  `Memory.keep`
10. tokens and cost are settled, telemetry records, the trail gets its line, always: before the last byte leaves
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from guards.detectors import Detectors
from guards.guard import Blocked, Guard, GuardFailure
from services.answer import AnswerGuard, Gathered, as_events, beside, text_of, without_usage
from services.asked import SPARES, Aside, Asked
from services.backends import Backends
from services.caller import ANYBODY, Caller
from services.errors import GuardUnavailable, InvalidRequest
from services.memory import Memory, remembered
from services.preparing import Preparation, Prepared, estimated, refusals
from services.protocol import ChatRequest, CompletionRequest, SearchRequest
from services.retrieval import find_passages

if TYPE_CHECKING:
    from cache.answers import Answers
    from rag.collection import Searchable
    from rag.context import Passage
    from services.accounting import Accounting
    from services.routing import Route, Routes
    from services.telemetry import Record, Telemetry

_ACTIONS: Mapping[type, str] = {ChatRequest: "chat", CompletionRequest: "completion", SearchRequest: "search"}
_ONLY_PASSAGES = (
    "Your last answer said things that the passages do not say. Answer again, with what the passages say and nothing else."
)


class Engine(Protocol):
    """What the pipeline needs of an engine."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        ...

    def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events."""
        ...


@dataclass
class Pipeline:
    """All that is needed to answer a request."""

    routes: Routes
    engine: Engine
    telemetry: Telemetry
    collections: Mapping[str, Searchable] = field(default_factory=dict)
    detectors: Detectors = field(default_factory=Detectors)
    accounting: Accounting | None = None
    backends: Backends = field(default=cast("Backends", None))
    """Made of the engine unless told."""
    caches: Mapping[str, Answers] = field(default_factory=dict)
    """By route."""

    def _preparation(self, route: Route, record: Record) -> Preparation:
        return Preparation(Aside(self.backends, route, record), self.collections)

    def __post_init__(self) -> None:
        self.backends = self.backends or Backends(self.engine, self.telemetry)

    def route(self, request: ChatRequest | CompletionRequest | SearchRequest, caller: Caller = ANYBODY) -> Route:
        """Fix what will answer, with all its versions; raises UnknownModel, Forbidden and EngineUnavailable."""
        return self.routes.find(request.model, request.user, caller)

    async def answer(
        self, request: ChatRequest | CompletionRequest, route: Route | None = None, blank: Record | None = None
    ) -> dict[str, Any]:
        """Return the whole answer, of the route that was fixed; raises EkibenError.

        `blank` is filled on the way: with the headers that go with the answer, for one.
        """
        route = route or self.route(request)
        async with self._request(request, route, blank) as record:
            guard = self._guard(route, record)
            asked = await self._preparation(route, record).checked(request, route, guard)
            async with self._remembered(request, route, asked, record) as memory:
                if memory.answer is not None:
                    body = memory.answer
                else:
                    prepared = await self._preparation(route, record).rendered(asked, route, guard)
                    body = await self._whole(request, route, guard, prepared, record, memory.spare)
                    await memory.keep(body, record)
            record.status = "ok"
            self._kept_texts(record, asked.question, body)
            return body

    async def stream(
        self, request: ChatRequest | CompletionRequest, route: Route | None = None, blank: Record | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events; raises EkibenError, before the first event or in mid-stream.

        Closing the iterator, which the server does when the caller has left, closes the engine's stream; so does a guard
        that blocks the rest.
        """
        route = route or self.route(request)
        keep_usage = _wants_usage(request)
        async with self._request(request, route, blank) as record:
            guard = self._guard(route, record)
            asked = await self._preparation(route, record).checked(request, route, guard)
            async with self._remembered(request, route, asked, record) as memory:
                if memory.answer is not None:
                    body = memory.answer
                    for event in as_events(body, keep_usage=keep_usage):
                        yield event
                else:
                    prepared = await self._preparation(route, record).rendered(asked, route, guard)
                    gathered = Gathered()
                    if guard.holds_answer or prepared.ready is not None:
                        body = await self._whole(request, route, guard, prepared, record, memory.spare)
                        for event in as_events(body, keep_usage=keep_usage):
                            yield event
                    else:
                        engine = self._asked(request, route, prepared, record, memory.spare)
                        async with aclosing(self._guarded_events(request, route, guard, prepared, record, engine)) as events:
                            async for event in events:
                                gathered.take(event)
                                if (shown := event if keep_usage else without_usage(event)) is not None:
                                    yield shown
                        body = gathered.body()
                    await memory.keep(body, record)
            record.status = "ok"
            self._kept_texts(record, asked.question, body)

    async def _guarded_events(
        self,
        request: ChatRequest | CompletionRequest,
        route: Route,
        guard: Guard,
        prepared: Prepared,
        record: Record,
        engine: Engine,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the engine's events as the caller may see them."""
        answer = AnswerGuard(route, guard, prepared.context, choices=request.answers)
        async with aclosing(self._engine_events(engine, prepared)) as events:
            async for event in events:
                record.first_token()
                if record.target in SPARES:  # what was guarded before, or is the box's own word
                    yield event
                    continue
                with _failing_closed():
                    shown = await _look(guard, partial(answer.event, event, keep_usage=True))
                if shown is not None:
                    yield shown
                if answer.over:
                    break

    async def search(self, request: SearchRequest, route: Route, blank: Record | None = None) -> list[Passage]:
        """Return what a route's collection holds about a query, guarded like the route's answers; raises EkibenError."""
        if not route.collection:
            shown = self.routes.all.items()
            known = ", ".join(sorted(name for name, one in shown if one.collection and one.open_to(route.caller)))
            message = f"Route {route.name!r} has no documents; there is: {known or 'none that has'}."
            raise InvalidRequest(message, param="model", code="unsupported_endpoint")
        async with self._request(request, route, blank) as record:
            guard = self._guard(route, record)
            with refusals(route):
                query = await asyncio.to_thread(guard.check_text, request.query)
                messages = [{"role": "user", "content": query}]
                collection = self.collections[route.collection]
                found = await find_passages(
                    route, collection, Aside(self.backends, route, record), guard, messages, request.top_k
                )
                with _failing_closed():
                    shown = await asyncio.to_thread(lambda: [replace(one, text=beside(guard, one.text)) for one in found])
            record.status = "ok"
            return shown

    @asynccontextmanager
    async def _request(
        self, request: ChatRequest | CompletionRequest | SearchRequest, route: Route, blank: Record | None
    ) -> AsyncGenerator[Record]:
        """Record a request, and hold what it takes of its caller; raises EkibenError."""
        with self.telemetry.request(route, _ACTIONS[type(request)], blank) as record:
            if self.accounting is None:
                yield record
                return
            tokens, answer_tokens = estimated(request, route)
            async with self.accounting.request(route, record, tokens=tokens, answer_tokens=answer_tokens):
                yield record

    def _asked(
        self,
        request: ChatRequest | CompletionRequest,
        route: Route,
        prepared: Prepared,
        record: Record,
        spare: dict[str, Any] | None,
    ) -> Asked:
        return Asked(self.backends, route, record, question=prepared.question, user=request.user, spare=spare)

    def _remembered(
        self, request: ChatRequest | CompletionRequest, route: Route, asked: Prepared, record: Record
    ) -> AbstractAsyncContextManager[Memory]:
        collection = self.collections[route.collection] if route.collection else None
        return remembered(self.caches.get(route.name), route, request, asked.payload, record, collection)

    def _kept_texts(self, record: Record, question: str, body: dict[str, Any]) -> None:
        """Keep the question and the answer for the audit trail, as the guards let them through, where it has them."""
        if self.accounting is not None and self.accounting.texts != "none":
            said = "\n".join(text_of(choice) for choice in body.get("choices", ()))
            if record.guard is not None:
                said = record.guard.vault.hidden(said)
            record.texts = {"question": question, "answer": said}

    def _guard(self, route: Route, record: Record) -> Guard:
        record.guard = Guard(route.policy, self.detectors, record.findings, system_prompt=route.prompt.system)
        return record.guard

    async def _whole(
        self, request: ChatRequest | CompletionRequest, route: Route, guard: Guard, prepared: Prepared, record: Record,
        spare: dict[str, Any] | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the engine's answer as the caller may see it, asked for once more where a check wants that."""
        for last in (False, True):
            engine = self._asked(request, route, prepared, record, spare)
            body = prepared.ready or await engine.complete(prepared.path, prepared.payload)
            if record.target in SPARES:
                return body
            answer = AnswerGuard(route, guard, prepared.context, choices=request.answers)
            try:
                with _failing_closed():
                    shown = await _look(guard, partial(answer.whole, body))
                    for index in range(len(body.get("choices", []))):
                        passages = prepared.context.texts() if prepared.context else ()
                        await self._preparation(route, record).ask_judges("output", route, guard, answer.spoken(index), passages)
            except Blocked as blocked:
                if blocked.finding.action == "regenerate" and not last and prepared.context is not None and not prepared.ready:
                    prepared = prepared.again(_ONLY_PASSAGES)
                    continue
                return answer.refused(body)
            else:
                return shown
        raise AssertionError

    async def _engine_events(self, engine: Engine, prepared: Prepared) -> AsyncGenerator[dict[str, Any]]:
        # Usage is always asked for: telemetry counts tokens that the caller may not want to see.
        options = {**prepared.payload.get("stream_options", {}), "include_usage": True}
        payload = {**prepared.payload, "stream": True, "stream_options": options}
        async with aclosing(engine.stream(prepared.path, payload)) as events:
            async for event in events:
                yield event


_Shown = TypeVar("_Shown")


async def _look(guard: Guard, look: Callable[[], _Shown]) -> _Shown:
    """Let a guard look at a piece of an answer, elsewhere where that takes long."""
    return await asyncio.to_thread(look) if guard.slow else look()


class _failing_closed:  # noqa: N801  reads as a statement
    """What a guard cannot look at does not leave."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, GuardFailure):
            raise GuardUnavailable("A guard failed, so the rest of the answer was withheld.") from error


def _wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
