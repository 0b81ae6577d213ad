"""Answers given again: by the same words, by the same meaning, or with whoever asks the same at this moment."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from cache.key import Scope
from cache.semantic import Matcher
from cache.store import Store, Stored

Kind = Literal["exact", "semantic"]
Outcome = Literal["exact", "semantic", "shared", "miss"]
"""What became of a look-up; shared: the answer was on its way to somebody else."""
Vector = Sequence[float]
Embed = Callable[[str], Awaitable[Vector | None]]
WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Hit:
    """An answer that was given before, to the same question or to one of the same meaning, and how long ago."""

    body: dict[str, Any]
    kind: Kind
    age_seconds: float
    likelihood: float = 1.0
    """That the question meant the same."""


class Flight:
    """A question on its way: with a `hit`, or to be answered, and then `put`. A `spare` is too old, but better than nothing."""

    def __init__(self, hit: Hit | None, put: Callable[[dict[str, Any]], Awaitable[bool]], spare: Hit | None = None) -> None:
        self.hit = hit
        self.put = put
        self.spare = spare


class Answers:
    """Looks answers up in a store, and keeps new ones there.

    With a `matcher` and `embed`, questions of the same meaning are found too; `embed` returns None where it cannot. `wait` is
    how long an identical request waits for the one under way, in seconds. `several` keeps bodies with more than one choice. What
    is older than `good` seconds is no hit, only a flight's spare. `heard` is told what became of each look-up.
    """

    def __init__(
        self,
        store: Store,
        matcher: Matcher | None = None,
        embed: Embed | None = None,
        *,
        wait: float = WAIT_SECONDS,
        several: bool = False,
        good: float = math.inf,
        heard: Callable[[Outcome], None] = lambda _outcome: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._matcher, self._embed = store, matcher, embed
        self._wait, self._several, self._good, self._heard, self._now = wait, several, good, heard, now
        self._flying: dict[str, asyncio.Future[Hit | None]] = {}

    async def get(self, scope: Scope, question: str) -> Hit | None:
        """Return an answer to the question; None where there is none. An empty question is found by its context alone."""
        hit = self._fresh(await self._exact(scope, question)) or (await self._semantic(scope, question))[0]
        self._heard(hit.kind if hit else "miss")
        return hit

    async def put(self, scope: Scope, question: str, body: dict[str, Any], vector: Vector | None = None) -> bool:
        """Keep a whole answer where it is one that may be given again; return whether it is."""
        if not cacheable(body, several=self._several):
            return False
        if vector is None:
            vector = await self._vector(question)
        await self._store.put(scope.digest, scope.key(question), Stored(body, question, self._now(), vector))
        return True

    @asynccontextmanager
    async def flight(self, scope: Scope, question: str) -> AsyncGenerator[Flight]:
        """Look a question up; of identical ones that miss at a time, one goes on and the others wait for its answer.

        With no `hit`, whoever is inside answers the question and calls `put`. When he leaves without (an error, a caller who
        left, an answer that is not kept), one of those who wait goes on in his place.
        """
        key = scope.key(question)
        deadline = asyncio.get_running_loop().time() + self._wait
        exact = await self._exact(scope, question)
        hit = self._fresh(exact)
        while hit is None and key in self._flying:
            try:
                async with asyncio.timeout_at(deadline):
                    shared = await asyncio.shield(self._flying[key])
            except TimeoutError:
                break
            if shared is not None:
                self._heard("shared")
                yield Flight(replace(shared, body=copy.deepcopy(shared.body)), self._kept)
                return
        if hit is not None:
            self._heard("exact")
            yield Flight(hit, self._kept)
            return
        async with self._leading(key) as landed:
            hit, old, vector = await self._semantic(scope, question)
            self._heard("semantic" if hit else "miss")

            async def put(body: dict[str, Any]) -> bool:
                kept = await self.put(scope, question, body, vector)
                if kept:
                    landed(Hit(body, "exact", 0.0))
                return kept

            if hit is not None:
                landed(hit)
            yield Flight(hit, self._kept if hit else put, exact or old)

    @asynccontextmanager
    async def _leading(self, key: str) -> AsyncGenerator[Callable[[Hit | None], None]]:
        """Others may wait for this one, unless they waited for another in vain: then it goes alone."""
        own: asyncio.Future[Hit | None] = asyncio.get_running_loop().create_future()
        first = self._flying.setdefault(key, own) is own

        def landed(hit: Hit | None) -> None:
            if not own.done():
                own.set_result(hit)
            if first and self._flying.get(key) is own:
                del self._flying[key]

        try:
            yield landed
        finally:
            landed(None)

    async def _kept(self, _body: dict[str, Any]) -> bool:
        return False

    async def _exact(self, scope: Scope, question: str) -> Hit | None:
        found = await self._store.get(scope.digest, scope.key(question))
        return None if found is None else Hit(found.body, "exact", self._age(found))

    async def _semantic(self, scope: Scope, question: str) -> tuple[Hit | None, Hit | None, Vector | None]:
        """Return what a question of the same meaning was answered, now and too long ago, and the vector of this one."""
        vector = await self._vector(question)
        old: Hit | None = None
        if self._matcher is None or vector is None:
            return None, None, vector
        questions = await self._store.questions(scope.digest)
        for match in self._matcher.matches(question, vector, questions):
            found = await self._store.get(scope.digest, match.key)
            if found is None:
                questions.remove(match.key)
                continue
            hit = Hit(found.body, "semantic", self._age(found), match.likelihood)
            if self._fresh(hit):
                return hit, None, vector
            old = old or hit
        return None, old, vector

    def _fresh(self, hit: Hit | None) -> Hit | None:
        return hit if hit is not None and hit.age_seconds <= self._good else None

    async def _vector(self, question: str) -> Vector | None:
        return await self._embed(question) if self._embed and self._matcher and question.strip() else None

    def _age(self, found: Stored) -> float:
        return max(0.0, self._now() - found.created)


def cacheable(body: dict[str, Any], *, several: bool = False) -> bool:
    """Whether a whole answer may be given again: it ended by itself, says something, calls no tool, and is no error."""
    choices = body.get("choices")
    if body.get("error") or not isinstance(choices, list) or not choices or (len(choices) > 1 and not several):
        return False
    return all(_said(choice) for choice in choices)


def _said(choice: dict[str, Any]) -> bool:
    message = choice.get("message", choice)
    if choice.get("finish_reason") != "stop" or message.get("tool_calls") or message.get("function_call"):
        return False
    content = message.get("content", message.get("text"))
    return isinstance(content, str) and bool(content.strip()) and not message.get("refusal")
