"""A question to the base model on the way of a request: with a deadline, and no answer where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from services.errors import EkibenError


class Model(Protocol):
    """What is needed of an engine: a model that is asked."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        ...


async def ask(model: Model, name: str, messages: Sequence[dict[str, str]], *, max_tokens: int, deadline_ms: float) -> str | None:
    """Return what the model `name` says to messages, always the same; None when it fails or takes longer than the deadline."""
    payload = {"model": name, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            body = await model.complete("/v1/chat/completions", payload)
        return str(body["choices"][0]["message"]["content"])
    except (EkibenError, TimeoutError, LookupError):
        return None
