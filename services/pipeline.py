"""The way of a request, in order. It knows neither BentoML nor HTTP nor the environment.

1. the Route fixes every version            `Routes.find`
2. guards look at the input                 `Guard.check_messages`
3. passages are retrieved, and guarded      `_passages`
4. the prompt is rendered                   `PromptVersion.render`
5. the engine answers with the adapter      `Engine.complete`, `Engine.stream`
6. guards mask the answer                   `services.answer`
7. telemetry records, always                `Telemetry.request`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from guards.guard import Blocked, Guard, GuardFailure
from services.answer import AnswerGuard
from services.errors import ContentRefused, EngineUnavailable, GuardUnavailable, InvalidRequest, RetrievalUnavailable
from services.protocol import ChatRequest, CompletionRequest, plain_text

if TYPE_CHECKING:
    from rag.chain import Context, Passage
    from services.routing import Route, Routes
    from services.telemetry import Telemetry


class Engine(Protocol):
    """What the pipeline needs of an engine."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        ...

    def stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events."""
        ...


class Collection(Protocol):
    """What the pipeline needs of a collection of documents."""

    async def search(self, question: str) -> list[Passage]:
        """Return passages, best first."""
        ...

    def fit(self, passages: list[Passage]) -> Context:
        """Number the passages and cut them to the collection's budget."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for the engine."""

    path: str
    payload: dict[str, Any]
    context: Context | None


@dataclass
class Pipeline:
    """All that is needed to answer a request."""

    routes: Routes
    engine: Engine
    telemetry: Telemetry
    collections: Mapping[str, Collection] = field(default_factory=dict)

    def route(self, request: ChatRequest | CompletionRequest) -> Route:
        """Fix what will answer, with all its versions; raises UnknownModel and EngineUnavailable."""
        return self.routes.find(request.model, request.user)

    async def answer(self, request: ChatRequest | CompletionRequest, route: Route | None = None) -> dict[str, Any]:
        """Return the whole answer, of the route that was fixed; raises EkibenError."""
        route = route or self.route(request)
        with self.telemetry.request(route) as record:
            guard = Guard(route.policy, record.findings)
            prepared = await self._prepare(request, route, guard)
            body = await self.engine.complete(prepared.path, prepared.payload)
            record.usage(body.get("usage"))
            with _failing_closed():
                body = AnswerGuard(route, guard, prepared.context).whole(body)
            record.status = "ok"
            return body

    async def stream(
        self, request: ChatRequest | CompletionRequest, route: Route | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer's events; raises EkibenError, before the first event or in mid-stream.

        Closing the iterator, which the server does when the caller has left, closes the engine's stream.
        """
        route = route or self.route(request)
        with self.telemetry.request(route) as record:
            guard = Guard(route.policy, record.findings)
            prepared = await self._prepare(request, route, guard)
            answer = AnswerGuard(route, guard, prepared.context)
            async with aclosing(self._engine_events(prepared)) as events:
                async for event in events:
                    record.first_token()
                    record.usage(event.get("usage"))
                    with _failing_closed():
                        shown = answer.event(event, keep_usage=_wants_usage(request))
                    if shown is not None:
                        yield shown
            record.status = "ok"

    async def _engine_events(self, prepared: Prepared) -> AsyncGenerator[dict[str, Any]]:
        # Usage is always asked for: telemetry counts tokens that the caller may not want to see.
        options = {**prepared.payload.get("stream_options", {}), "include_usage": True}
        payload = {**prepared.payload, "stream": True, "stream_options": options}
        async with aclosing(self.engine.stream(prepared.path, payload)) as events:
            async for event in events:
                yield event

    async def _prepare(self, request: ChatRequest | CompletionRequest, route: Route, guard: Guard) -> Prepared:
        if guard.masks_output and _wants_logprobs(request):
            message = f"Route {route.name!r} masks personal data in answers; logprobs would show it and are refused."
            raise InvalidRequest(message, param="logprobs", code="unsupported_parameter")
        try:
            if isinstance(request, ChatRequest):
                return await self._prepare_chat(request, route, guard)
            return await self._prepare_completion(request, route, guard)
        except Blocked as blocked:
            finding = blocked.finding
            message = f"The request was refused by guard {finding.detector!r} ({finding.detail}) of policy {route.policy.label}."
            raise ContentRefused(message) from blocked
        except GuardFailure as error:
            raise GuardUnavailable("A guard failed, so the request was not passed on.") from error

    async def _prepare_chat(self, request: ChatRequest, route: Route, guard: Guard) -> Prepared:
        payload: dict[str, Any] = request.payload(route.parameters) | _answered_by(route, request)
        # A long message takes Presidio milliseconds that the other streams would wait for.
        messages = await asyncio.to_thread(guard.check_messages, payload["messages"])
        question = next((plain_text(m) for m in reversed(messages) if m["role"] == "user"), "")
        context = await self._context(route, guard, question) if route.collection else None
        passages = context.text if context else ""
        payload["messages"] = route.prompt.render(messages, question=question, passages=passages)
        return Prepared("/v1/chat/completions", payload, context)

    async def _prepare_completion(self, request: CompletionRequest, route: Route, guard: Guard) -> Prepared:
        if route.collection:
            message = f"Route {route.name!r} answers from documents; use /v1/chat/completions."
            raise InvalidRequest(message, param="model", code="unsupported_endpoint")
        payload = request.payload(route.parameters) | _answered_by(route, request)
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if all(isinstance(prompt, str) for prompt in prompts):
            checked = [await asyncio.to_thread(guard.check_text, str(prompt)) for prompt in prompts]
            payload["prompt"] = checked[0] if isinstance(request.prompt, str) else checked
        elif guard.looks_at_input:
            message = f"Route {route.name!r} guards its input and cannot read token ids; send text."
            raise InvalidRequest(message, param="prompt", code="unsupported_parameter")
        return Prepared("/v1/completions", payload, None)

    async def _context(self, route: Route, guard: Guard, question: str) -> Context:
        collection = self.collections[route.collection or ""]
        try:
            found = await collection.search(question)
        except Exception as error:
            raise RetrievalUnavailable("The documents could not be searched; try again.") from error
        return collection.fit([passage for passage in found if guard.keep_passage(passage.text)])


class _failing_closed:  # noqa: N801  reads as a statement
    """What a guard cannot look at does not leave."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, GuardFailure):
            raise GuardUnavailable("A guard failed, so the rest of the answer was withheld.") from error


def _wants_logprobs(request: ChatRequest | CompletionRequest) -> bool:
    if isinstance(request, ChatRequest):
        return bool(request.logprobs) or request.top_logprobs is not None
    return request.logprobs is not None


def _answered_by(route: Route, request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """Return the fields that hold the engine to the route: its adapter, and where it has labels, these and nothing else."""
    if not route.only_labels:
        return {"model": route.engine_model}
    if not route.labels:
        raise EngineUnavailable(f"Route {route.name!r} answers with labels only, and this adapter version lists none.")
    for name in ("response_format", "structured_outputs", "tools"):
        if getattr(request, name, None) is not None:
            raise InvalidRequest(f"Route {route.name!r} answers with one of its labels; leave {name} out.", param=name)
    return {"model": route.engine_model, "structured_outputs": {"choice": list(route.labels)}}


def _wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
