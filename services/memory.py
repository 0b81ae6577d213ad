"""Answers given again on the way of a request: which requests may be, and what must be the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cache.key import Scope, divide
from services.answer import new_id
from services.asked import SPARES
from services.errors import RetrievalUnavailable
from services.protocol import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from cache.answers import Answers, Hit
    from rag.collection import Searchable
    from services.routing import Route
    from services.telemetry import Record
    from services.terms import AnswerCache

HEADER = "x-ekiben-cache"
_NO_MATTER = frozenset({"messages", "stream", "stream_options", "user", "model"})
"""Fields of a request that its answer does not depend on; the model is among the versions."""


@dataclass(frozen=True)
class Memory:
    """What was answered before: an answer to give again, or a `spare` for when nothing else answers."""

    answer: dict[str, Any] | None = None
    put: Callable[[dict[str, Any]], Awaitable[bool]] | None = None
    spare: dict[str, Any] | None = None

    async def keep(self, body: dict[str, Any], record: Record) -> None:
        """Keep an answer, unless guards had something to say of it, or it is none of a model."""
        if self.put is not None and not record.findings and record.target not in SPARES and record.calls:
            await self.put(body)


@asynccontextmanager
async def remembered(
    answers: Answers | None,
    route: Route,
    request: ChatRequest | CompletionRequest,
    payload: Mapping[str, Any],
    record: Record,
    collection: Searchable | None,
) -> AsyncGenerator[Memory]:
    """What was answered before, where a route remembers and this request may be answered from it.

    Of identical requests at once one is answered, and the others wait for it.
    """
    # Questions that differ in what was hidden of them look the same here.
    hidden = record.guard is not None and not record.guard.vault.empty
    if answers is None or route.cache is None or record.findings or hidden or not repeatable(request, payload, route.cache):
        yield Memory()
        return
    context, question = divide(payload["messages"])
    scope = Scope(
        tenant=route.caller.tenant, labels=route.caller.roles, versions={**route.versions(), "settings": route.settings},
        parameters={name: value for name, value in payload.items() if name not in _NO_MATTER}, context=context,
        documents=await _version(collection) if collection else None,
    )  # fmt: skip
    if record.fresh:
        record.headers[HEADER] = "bypass"
        yield Memory(put=partial(answers.put, scope, question))
        return
    async with answers.flight(scope, question) as flight:
        record.headers[HEADER] = flight.hit.kind if flight.hit else "miss"
        if flight.hit is not None:
            record.cached = flight.hit.kind
        yield Memory(
            given_again(flight.hit, flight.hit.kind) if flight.hit else None,
            flight.put,
            given_again(flight.spare, "stale") if flight.spare else None,
        )


async def _version(collection: Searchable) -> str | None:
    try:
        return await asyncio.to_thread(collection.version)
    except Exception as error:
        raise RetrievalUnavailable("The documents could not be searched; try again.") from error


def repeatable(request: ChatRequest | CompletionRequest, payload: Mapping[str, Any], cache: AnswerCache) -> bool:
    """Whether an answer may be given again: one, in words alone, and not meant to be another every time."""
    if not isinstance(request, ChatRequest) or (request.n or 1) > 1 or request.tools:
        return False
    if request.logprobs or request.top_logprobs is not None:
        return False
    temperature = payload.get("temperature")
    return (1.0 if temperature is None else temperature) <= cache.max_temperature


def given_again(hit: Hit, kind: str) -> dict[str, Any]:
    """Return an answer of before as one of now."""
    about = {**hit.body.get("ekiben", {}), "cache": {"kind": kind, "age_seconds": round(hit.age_seconds, 1)}}
    return {**hit.body, "id": new_id(chat=True), "created": int(time.time()), "ekiben": about}
