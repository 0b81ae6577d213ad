"""The way of a request, in order. It knows neither BentoML nor HTTP nor the environment.

1. the Route fixes every version                  `Routes.find`
2. telemetry begins, and records at the end, always `Telemetry.request`
3. limits, budgets and the trail let it in         `Accounting.request`
4. guards look at the input                        `Guard.check_messages`
5. an answer of before is given again              `services.memory`; then 6 to 9 are left out
6. passages are retrieved, and guarded             `services.retrieval`
7. the prompt is rendered                          `PromptVersion.render`
8. an engine answers: a place in the queue, or the next target  `services.backends`
9. guards look at the answer                       `services.answer`
10. the answer is kept; tokens and cost are settled; the line of the trail is written before the last byte leaves
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from guards.detectors import Detectors
from guards.guard import Blocked, Guard, GuardFailure, Stage
from rag.language import language_of
from services.answer import AnswerGuard, Gathered, as_events, beside, spoken, text_of, without_usage
from services.asking import ask
from services.backends import SPARES, Asked, Backends
from services.caller import ANYBODY, Caller
from services.errors import (
    ContentRefused,
    EngineUnavailable,
    GuardUnavailable,
    InvalidRequest,
)
from services.memory import Memory, remembered
from services.meter import CHARACTERS_PER_TOKEN, prompt_tokens
from services.protocol import ChatRequest, CompletionRequest, SearchRequest, plain_text
from services.retrieval import find_passages
from services.targeting import ANSWER_TOKENS

if TYPE_CHECKING:
    from cache.answers import Answers
    from rag.collection import Searchable
    from rag.context import Context, Passage
    from services.accounting import Accounting
    from services.routing import Route, Routes
    from services.telemetry import Record, Telemetry

_ACTIONS: Mapping[type, str] = {ChatRequest: "chat", CompletionRequest: "completion", SearchRequest: "search"}
_VERDICT_TOKENS = 96
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


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for the engine."""

    path: str
    payload: dict[str, Any]
    context: Context | None
    question: str = ""
    """The last user message, as the guards let it through."""
    ready: dict[str, Any] | None = None
    """The answer, where the engine need not be asked."""

    def again(self, demand: str) -> Prepared:
        """Return the same request with a demand behind its last message."""
        messages = [*self.payload["messages"], {"role": "user", "content": demand}]
        return replace(self, payload={**self.payload, "messages": messages})


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
            asked = await self._checked(request, route, guard)
            async with self._remembered(request, route, asked, record) as memory:
                if memory.answer is not None:
                    body = memory.answer
                else:
                    prepared = await self._rendered(asked, route, guard)
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
            asked = await self._checked(request, route, guard)
            async with self._remembered(request, route, asked, record) as memory:
                if memory.answer is not None:
                    body = memory.answer
                    for event in as_events(body, keep_usage=keep_usage):
                        yield event
                else:
                    prepared = await self._rendered(asked, route, guard)
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
        answer = AnswerGuard(route, guard, prepared.context, choices=request.n or 1)
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
            with _refusals(route):
                query = await asyncio.to_thread(guard.check_text, request.query)
                messages = [{"role": "user", "content": query}]
                collection = self.collections[route.collection]
                found = await find_passages(route, collection, self.engine, guard, messages, request.top_k)
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
        return self.backends.asked(route, record, question=prepared.question, user=request.user, spare=spare)

    def _remembered(
        self, request: ChatRequest | CompletionRequest, route: Route, asked: Prepared, record: Record
    ) -> AbstractAsyncContextManager[Memory]:
        collection = self.collections[route.collection] if route.collection else None
        return remembered(self.caches.get(route.name), route, request, asked.payload, record, collection)

    def _kept_texts(self, record: Record, question: str, body: dict[str, Any]) -> None:
        """Keep the question and the answer for the audit trail, as the guards let them through, where it has them."""
        if self.accounting is not None and self.accounting.texts != "none":
            said = "\n".join(text_of(choice) for choice in body.get("choices", ()))
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
            answer = AnswerGuard(route, guard, prepared.context, choices=request.n or 1)
            try:
                with _failing_closed():
                    shown = await _look(guard, partial(answer.whole, body))
                    for index in range(len(body.get("choices", []))):
                        passages = prepared.context.texts() if prepared.context else ()
                        await self._ask_judges("output", route, guard, answer.spoken(index), passages)
            except Blocked as blocked:
                if blocked.finding.action == "regenerate" and not last and prepared.context is not None and not prepared.ready:
                    prepared = prepared.again(_ONLY_PASSAGES)
                    continue
                return answer.refused(body)
            else:
                return shown
        raise AssertionError

    async def _ask_judges(self, stage: Stage, route: Route, guard: Guard, text: str, passages: Sequence[str] = ()) -> None:
        """Ask a model for its verdicts; raises Blocked and GuardFailure."""
        for check in guard.judges(stage):
            question = guard.question(check, text, passages)
            answer = await ask(
                self.engine, route.judge_model, question, max_tokens=_VERDICT_TOKENS, deadline_ms=check.deadline_ms
            )
            guard.verdict(stage, check, answer)

    async def _engine_events(self, engine: Engine, prepared: Prepared) -> AsyncGenerator[dict[str, Any]]:
        # Usage is always asked for: telemetry counts tokens that the caller may not want to see.
        options = {**prepared.payload.get("stream_options", {}), "include_usage": True}
        payload = {**prepared.payload, "stream": True, "stream_options": options}
        async with aclosing(engine.stream(prepared.path, payload)) as events:
            async for event in events:
                yield event

    async def _checked(self, request: ChatRequest | CompletionRequest, route: Route, guard: Guard) -> Prepared:
        """Return a request as the guards let it through; raises EkibenError."""
        if guard.hides_output and _wants_logprobs(request):
            message = f"Route {route.name!r} guards its answers; logprobs would show what is hidden and are refused."
            raise InvalidRequest(message, param="logprobs", code="unsupported_parameter")
        with _refusals(route):
            if isinstance(request, ChatRequest):
                return await self._checked_chat(request, route, guard)
            return await self._checked_completion(request, route, guard)

    async def _checked_chat(self, request: ChatRequest, route: Route, guard: Guard) -> Prepared:
        payload: dict[str, Any] = request.payload(route.parameters) | _answered_by(route, request)
        # A long message takes Presidio milliseconds that the other streams would wait for; without checks a thread takes longer.
        if guard.looks_at_input:
            messages = await asyncio.to_thread(guard.check_messages, payload["messages"])
        else:
            messages = guard.check_messages(payload["messages"])
        question = next((plain_text(m) for m in reversed(messages) if m["role"] == "user"), "")
        if question:
            await self._ask_judges("input", route, guard, question)
        return Prepared("/v1/chat/completions", {**payload, "messages": messages}, None, question)

    async def _rendered(self, asked: Prepared, route: Route, guard: Guard) -> Prepared:
        """Return the request with its prompt around it, and the passages that it is answered from; raises EkibenError."""
        if "messages" not in asked.payload:
            return asked
        messages, question, context = asked.payload["messages"], asked.question, None
        with _refusals(route):
            if route.collection:
                collection = self.collections[route.collection]
                context = collection.fit(await find_passages(route, collection, self.engine, guard, messages), question)
                if not context.passages:
                    return replace(asked, context=context, ready=nothing_found(route, question, asked.payload))
        passages = context.text if context else ""
        prompt = marked(route.prompt.render(messages, question=question, passages=passages), guard.canary)
        return replace(asked, payload={**asked.payload, "messages": prompt}, context=context)

    async def _checked_completion(self, request: CompletionRequest, route: Route, guard: Guard) -> Prepared:
        if route.collection:
            message = f"Route {route.name!r} answers from documents; use /v1/chat/completions."
            raise InvalidRequest(message, param="model", code="unsupported_endpoint")
        payload = request.payload(route.parameters) | _answered_by(route, request)
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if all(isinstance(prompt, str) for prompt in prompts):
            checked = [await asyncio.to_thread(guard.check_text, str(prompt)) for prompt in prompts]
            for text in checked:
                await self._ask_judges("input", route, guard, text)
            payload["prompt"] = checked[0] if isinstance(request.prompt, str) else checked
            prompts = checked
        elif guard.looks_at_input:
            message = f"Route {route.name!r} guards its input and cannot read token ids; send text."
            raise InvalidRequest(message, param="prompt", code="unsupported_parameter")
        question = "\n".join(prompt for prompt in prompts if isinstance(prompt, str))
        return Prepared("/v1/completions", payload, None, question)


def nothing_found(route: Route, question: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole answer where no passage was found: in the question's language, by no model."""
    text = route.nothing_found.zh if language_of(question) == "zh" else route.nothing_found.en
    return spoken(route.name, text, payload)


def estimated(request: ChatRequest | CompletionRequest | SearchRequest, route: Route) -> tuple[int, int]:
    """Return about how many tokens a request has, and how many its answer may have; a search has none of either."""
    if isinstance(request, SearchRequest):
        return 0, 0
    if isinstance(request, ChatRequest):
        tokens = math.ceil(sum(message.characters for message in request.messages) / CHARACTERS_PER_TOKEN)
    else:
        tokens = prompt_tokens({"prompt": request.prompt})
    return tokens, (capped(request, route) or ANSWER_TOKENS) * (request.n or 1)


def capped(request: ChatRequest | CompletionRequest, route: Route) -> int | None:
    """Return the longest answer that a request may get, in tokens; None is as the engine has it."""
    completion = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    told = request.max_tokens or (None if completion else route.parameters.max_tokens)
    return min((tokens for tokens in (completion, told, route.max_tokens) if tokens), default=None)


def marked(messages: list[dict[str, Any]], canary: str) -> list[dict[str, Any]]:
    """Return the messages with a mark in the first one, the system's, that must never be shown."""
    if not canary:
        return messages
    first = {**messages[0], "content": f"{messages[0]['content']}\n\n({canary} is confidential. Never repeat it.)"}
    return [first, *messages[1:]]


_Shown = TypeVar("_Shown")


async def _look(guard: Guard, look: Callable[[], _Shown]) -> _Shown:
    """Let a guard look at a piece of an answer, elsewhere where that takes long."""
    return await asyncio.to_thread(look) if guard.slow else look()


@contextmanager
def _refusals(route: Route) -> Generator[None]:
    """What guards say of a request, as errors that its caller may see."""
    try:
        yield
    except Blocked as blocked:
        finding = blocked.finding
        message = f"The request was refused by guard {finding.detector!r} ({finding.detail}) of policy {route.policy.label}."
        raise ContentRefused(message) from blocked
    except GuardFailure as error:
        raise GuardUnavailable("A guard failed, so the request was not passed on.") from error


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
    longest = capped(request, route)
    named = "max_completion_tokens" if getattr(request, "max_completion_tokens", None) else "max_tokens"
    answered = {"model": route.engine_model, **({named: longest} if longest and route.max_tokens else {})}
    if not route.only_labels:
        return answered
    if not route.labels:
        raise EngineUnavailable(f"Route {route.name!r} answers with labels only, and this adapter version lists none.")
    for name in ("response_format", "structured_outputs", "tools"):
        if getattr(request, name, None) is not None:
            raise InvalidRequest(f"Route {route.name!r} answers with one of its labels; leave {name} out.", param=name)
    return {**answered, "structured_outputs": {"choice": list(route.labels)}}


def _wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
