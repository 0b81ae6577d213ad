"""Load on an OpenAI-compatible server, and what it gave: tokens a second, and the time to the first token.

`ekiben model compare`, `ekiben model tune` and the benchmarks measure with this one function, so that their figures can be
put side by side. Every stream is its own request over HTTP, and all begin at once.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.engine_client import EngineClient

CHAT = "/v1/chat/completions"
_WORDS = (
    "river", "mountain", "winter", "train", "letter", "garden", "bridge", "island", "market", "window", "engine", "paper",
    "summer", "forest", "music", "village", "harbour", "kitchen", "teacher", "doctor", "number", "morning", "evening",
    "coffee", "station", "ticket", "picture", "animal", "answer", "question",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a burst of streams gave. Times in seconds; the burst lasts from its start to the end of its last stream."""

    streams: int
    tokens: int
    """Tokens that were generated, over all streams, as the server counted them."""
    prompt_tokens: int
    seconds: float
    ttft_seconds: tuple[float, ...]
    """For each stream the time until its first piece of text, in the order of the streams."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, over all streams together."""
        return self.tokens / self.seconds

    @property
    def ttft_p50_seconds(self) -> float:
        """The median time to the first piece of text."""
        return statistics.median(self.ttft_seconds)

    @property
    def ttft_max_seconds(self) -> float:
        """The longest time to the first piece of text."""
        return max(self.ttft_seconds)


@dataclass(frozen=True)
class _Stream:
    ttft_seconds: float
    tokens: int
    prompt_tokens: int


async def measure(
    url: str,
    model: str | Sequence[str],
    streams: int,
    tokens: int,
    *,
    prompt_words: int = 12,
    seed: int = 0,
    ignore_eos: bool = True,
    key: str | None = None,
) -> Measured:
    """Stream `streams` chats of `tokens` tokens at once from the server at `url`, and return what it gave.

    With several models (an engine's adapters, a gateway's routes) the streams take them in turn. Every stream has a prompt of
    its own, of `prompt_words` words; the same `seed` gives the same prompts, so take another one for each repetition, or the
    server's prefix cache will know them. With `ignore_eos` every answer has `tokens` tokens, whatever the model would like.
    `key` is sent as a bearer token.

    The first burst after an engine's start is slower than all that follow: send a short one before what counts.

    Raises:
        EngineRefused: the server does not take the request (unknown model, prompt too long).
        EngineUnavailable: the server is not there, or was lost in mid-stream.
    """
    models = [model] if isinstance(model, str) else list(model)
    async with EngineClient(url.rstrip("/"), key=key) as client:
        payloads = [
            {
                "model": models[number % len(models)],
                "messages": [{"role": "user", "content": distinct_prompt(seed, number, prompt_words)}],
                "max_tokens": tokens, "ignore_eos": ignore_eos, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True},
            }
            for number in range(streams)
        ]  # fmt: skip
        started = time.perf_counter()
        results = await asyncio.gather(*(_stream(client, payload) for payload in payloads))
        seconds = time.perf_counter() - started
    return Measured(
        streams=streams, tokens=sum(result.tokens for result in results),
        prompt_tokens=sum(result.prompt_tokens for result in results), seconds=seconds,
        ttft_seconds=tuple(result.ttft_seconds for result in results),
    )  # fmt: skip


def distinct_prompt(seed: int, number: int, words: int) -> str:
    """Return the prompt of one stream: `words` words, the first of which already tell it from every other."""
    source = random.Random(f"{seed}-{number}")  # noqa: S311  no secret
    return f"{seed}-{number}: write about " + " ".join(source.choices(_WORDS, k=max(words - 3, 1)))


async def _stream(client: EngineClient, payload: dict[str, Any]) -> _Stream:
    started, first, usage = time.perf_counter(), None, {"completion_tokens": 0, "prompt_tokens": 0}
    async for event in client.stream(CHAT, payload):
        if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
            first = time.perf_counter() - started
        usage = event.get("usage") or usage
    # An answer without any text (special tokens only) was there when it ended.
    return _Stream(first or time.perf_counter() - started, usage["completion_tokens"], usage["prompt_tokens"])
