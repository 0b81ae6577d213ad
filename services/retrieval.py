"""From a conversation to the passages that its prompt is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag import queries
from rag.access import Access
from rag.context import merged
from services.asking import Model, ask
from services.errors import RetrievalUnavailable
from services.protocol import plain_text
from services.telemetry import log

if TYPE_CHECKING:
    from guards.guard import Guard
    from rag.collection import Searchable
    from rag.context import Passage
    from services.routing import Route

_WORDING_TOKENS = 128


async def find_passages(
    route: Route, collection: Searchable, model: Model, guard: Guard, messages: Sequence[dict[str, Any]], top_k: int | None = None
) -> list[Passage]:
    """Return passages for the last of a user's messages, best first, as the guard lets them through.

    Where the model that words questions does not answer in time, the question is searched for as it was asked. Raises
    RetrievalUnavailable.
    """
    access = Access(route.caller.tenant, route.caller.roles)
    wordings = await _wordings(route, model, messages)
    try:
        found = merged(await asyncio.gather(*(collection.search(wording, access, top_k) for wording in wordings)))
    except Exception as error:
        # The kinds alone: a message may quote the question.
        log.warning("retrieval failed", route=route.name, kind=type(error).__name__, cause=type(error.__cause__).__name__)
        raise RetrievalUnavailable("The documents could not be searched; try again.") from error
    shown = await asyncio.to_thread(lambda: [guard.review_passage(passage.text) for passage in found])
    return [replace(passage, text=text) for passage, text in zip(found, shown, strict=True) if text is not None]


async def _wordings(route: Route, model: Model, messages: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is searched for; the first is the question."""
    how = route.search
    turns = [(message["role"], plain_text(message)) for message in messages if message["role"] in {"user", "assistant"}]
    asked = [text for role, text in turns if role == "user" and text.strip()]
    if not asked:
        return []
    question = queries.joined(asked) if how.follow_ups == "join" else queries.clipped(asked[-1])
    if how.follow_ups == "rewrite" and len(asked) > 1:
        rewritten = await _reworded(route, model, queries.rewrite_messages(turns), 1)
        question = rewritten[0] if rewritten else queries.joined(asked)
    others: list[Any] = []
    if how.variants:
        others.append(_reworded(route, model, queries.variant_messages(question, how.variants), how.variants))
    if how.imagine:
        others.append(_reworded(route, model, queries.imagine_messages(question), 1))
    return list(dict.fromkeys([question, *(wording for found in await asyncio.gather(*others) for wording in found)]))


async def _reworded(route: Route, model: Model, messages: list[dict[str, str]], n: int) -> list[str]:
    """Return up to n wordings by the route's base model; none when it fails or takes too long."""
    answer = await ask(model, route.judge_model, messages, max_tokens=_WORDING_TOKENS, deadline_ms=route.search.deadline_ms)
    return queries.read_lines(answer, n) if answer is not None else []
