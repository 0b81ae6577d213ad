"""The way of a request, in order. It knows neither BentoML nor HTTP nor the environment.

1. the Route fixes every version            `Routes.find`
2. guards look at the input                 `Guard.check_messages`
3. passages are retrieved, and guarded      `services.retrieval`
4. the prompt is rendered                   `PromptVersion.render`
5. the engine answers with the adapter      `Engine.complete`, `Engine.stream`
6. guards look at the answer                `services.answer`
7. telemetry records, always                `Telemetry.request`
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from cache.key import Scope, divide
from guards.detectors import Detectors
from guards.guard import Blocked, Guard, GuardFailure, Stage
from rag.language import language_of
from services.answer import AnswerGuard, Gathered, as_events, beside, text_of, without_usage
from services.asking import ask
from services.backends import ANSWER_TOKENS, CHARACTERS_PER_TOKEN, Asked, Backends, spoken
from services.caller import ANYBODY, Caller
from services.errors import (
    ContentRefused,
    EngineUnavailable,
    GuardUnavailable,
    InvalidRequest,
)
from services.protocol import ChatRequest, CompletionRequest, SearchRequest, plain_text
from services.retrieval import find_passages

if TYPE_CHECKING:
    from cache.answers import Answers, Hit
    from rag.collection import Searchable
    from rag.context import Context, Passage
    from services.accounting import Accounting
    from services.routing import Route, Routes
    from services.telemetry import Record, Telemetry
    from services.terms import AnswerCache

_ACTIONS: Mapping[type, str] = {ChatRequest: "chat", CompletionRequest: "completion", SearchRequest: "search"}
_NO_MATTER = frozenset({"messages", "stream", "stream_options", "user", "model"})
"""Fields of a request that its answer does not depend on; the model is among the versions."""
_SPARES = frozenset({"cache", "apology"})
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


@dataclass(frozen=True)
class Memory:
    """What was answered before: a `hit` to give again, or a `spare` for when nothing else answers."""

    hit: Hit | None = None
    put: Callable[[dict[str, Any]], Awaitable[bool]] | None = None
    spare: dict[str, Any] | None = None

    async def keep(self, body: dict[str, Any], record: Record) -> None:
        """Keep an answer, unless guards had something to say of it, or it is none of a model."""
        if self.put is not None and not record.findings and record.target not in _SPARES and record.completion_tokens:
            await self.put(body)


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
                if memory.hit is not None:
                    body = given_again(memory.hit, record)
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
                if memory.hit is not None:
                    body = given_again(memory.hit, record)
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
                record.usage(event.get("usage"))
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

    @asynccontextmanager
    async def _remembered(
        self, request: ChatRequest | CompletionRequest, route: Route, asked: Prepared, record: Record
    ) -> AsyncGenerator[Memory]:
        """What was answered before, where a route remembers and this request may be answered from it."""
        answers = self.caches.get(route.name)
        if answers is None or route.cache is None or record.findings or not repeatable(request, asked.payload, route.cache):
            yield Memory()
            return
        collection = self.collections[route.collection] if route.collection else None
        context, question = divide(asked.payload["messages"])
        scope = Scope(
            tenant=route.caller.tenant, labels=route.caller.roles if collection else (), versions=route.versions(),
            parameters={name: value for name, value in asked.payload.items() if name not in _NO_MATTER}, context=context,
            documents=await asyncio.to_thread(collection.version) if collection else None,
        )  # fmt: skip
        async with answers.flight(scope, question) as flight:
            hit = flight.hit
            if hit is not None and (record.fresh or hit.age_seconds > route.cache.ttl_seconds):
                yield Memory(None, partial(answers.put, scope, question), hit.body)
            else:
                record.headers["x-ekiben-cache"] = hit.kind if hit else "miss"
                yield Memory(hit, flight.put)

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
            record.usage(body.get("usage"), more=last)
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
        elif guard.looks_at_input:
            message = f"Route {route.name!r} guards its input and cannot read token ids; send text."
            raise InvalidRequest(message, param="prompt", code="unsupported_parameter")
        return Prepared("/v1/completions", payload, None)


def repeatable(request: ChatRequest | CompletionRequest, payload: Mapping[str, Any], cache: AnswerCache) -> bool:
    """Whether an answer may be given again: one, in words alone, and not meant to be another every time."""
    if not isinstance(request, ChatRequest) or (request.n or 1) > 1 or request.tools or _wants_logprobs(request):
        return False
    temperature = payload.get("temperature")
    return (1.0 if temperature is None else temperature) <= cache.max_temperature


def given_again(hit: Hit, record: Record) -> dict[str, Any]:
    """Return an answer of before as one of now; it costs nothing."""
    record.cached = hit.kind
    about = {**hit.body.get("ekiben", {}), "cache": {"kind": hit.kind, "age_seconds": round(hit.age_seconds, 1)}}
    return {**hit.body, "id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "ekiben": about}


def nothing_found(route: Route, question: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole answer where no passage was found: in the question's language, by no model."""
    text = route.nothing_found.zh if language_of(question) == "zh" else route.nothing_found.en
    return spoken(route.name, text, payload)


def estimated(request: ChatRequest | CompletionRequest | SearchRequest, route: Route) -> tuple[int, int]:
    """Return about how many tokens a request has, and how many its answer may have; a search has none of either."""
    if isinstance(request, SearchRequest):
        return 0, 0
    if isinstance(request, ChatRequest):
        characters = sum(message.characters for message in request.messages)
    else:
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        characters = sum(len(prompt) if isinstance(prompt, str) else CHARACTERS_PER_TOKEN for prompt in prompts)
    longest = capped(request, route)
    return math.ceil(characters / CHARACTERS_PER_TOKEN), (longest or ANSWER_TOKENS) * (request.n or 1)


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
