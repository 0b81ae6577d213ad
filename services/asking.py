"""A question to the base model on the way of a request: with a deadline, and no answer where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from services.errors import EkibenError


class Model(Protocol):
    """What is needed of an engine: a model that is asked."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        ...


@runtime_checkable
class Waking(Protocol):
    """A model that may be asleep."""

    @property
    def waking_seconds(self) -> float:
        """How much longer than usual its next answer may take."""
        ...


async def ask(model: Model, name: str, messages: Sequence[dict[str, str]], *, max_tokens: int, deadline_ms: float) -> str | None:
    """Return what the model `name` says to messages, always the same; None when it fails or takes longer than the deadline.

    A model that sleeps is given the time of its start: who asks needs it awake anyway.
    """
    waking = model.waking_seconds if isinstance(model, Waking) else 0.0
    payload = {"model": name, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
    try:
        async with asyncio.timeout(deadline_ms / 1000 + waking):
            body = await model.complete("/v1/chat/completions", payload)
        return str(body["choices"][0]["message"]["content"])
    except (EkibenError, TimeoutError, LookupError):
        return None
