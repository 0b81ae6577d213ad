"""What engines took of one request: as they counted, or estimated where they did not come to say.

Usage comes at the end of a stream. One that breaks, or whose caller leaves, is charged for what came: each piece is a token, and
the prompt is as long as its characters make it. A call that gave nothing is charged nothing, unless its caller left while the
engine worked for him.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from services.protocol import plain_text

if TYPE_CHECKING:
    from services.terms import Price

CHARACTERS_PER_TOKEN = 3
"""About: English has four, Chinese one to two. For estimates; what counts is the engine's own count where it comes."""
_SAID = ("content", "reasoning", "reasoning_content", "refusal", "text", "tool_calls", "function_call")


class Tokens(NamedTuple):
    """Counts of tokens; `cached` are among those of the prompt."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass
class Call:
    """One call of an engine; `prompt` is an estimate, `price` the target's own, None the route's."""

    prompt: int
    price: Price | None = None
    pieces: int = 0
    usage: Tokens | None = None
    worked: bool = False
    """Whether the prompt is to be paid though nothing came."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take an event of a stream."""
        self.usage = read_usage(event.get("usage")) or self.usage
        self.pieces += sum(speaks(choice) for choice in event.get("choices") or ())

    def body(self, body: Mapping[str, Any]) -> None:
        """Take a whole answer."""
        self.usage, self.worked = read_usage(body.get("usage")), True
        said = "".join(
            plain_text(choice.get("message") or {"content": choice.get("text")}) for choice in body.get("choices") or ()
        )
        self.pieces = tokens_of(said)

    @property
    def tokens(self) -> Tokens:
        """What it took."""
        if self.usage is not None:
            return self.usage
        return Tokens(self.prompt, 0, self.pieces) if self.pieces or self.worked else Tokens()


def read_usage(usage: Any) -> Tokens | None:
    """Return OpenAI's `usage`; None where it is none, or is not of numbers that can be."""
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    told = [usage.get("prompt_tokens") or 0, cached or 0, usage.get("completion_tokens") or 0]
    if not all(isinstance(count, int) and count >= 0 for count in told):
        return None
    return Tokens(told[0], min(told[1], told[0]), told[2])


def speaks(choice: Mapping[str, Any]) -> bool:
    """Whether a choice of an event says something: the first one of a stream often names the role alone."""
    said = choice.get("delta", choice)
    return any(said.get(name) for name in _SAID)


def prompt_text(payload: Mapping[str, Any]) -> str:
    """Return what an engine is given to read; token ids are left out."""
    if "messages" in payload:
        return "\n".join(plain_text(message) for message in payload["messages"])
    prompt = payload.get("prompt")
    return prompt if isinstance(prompt, str) else "\n".join(text for text in prompt or () if isinstance(text, str))


def prompt_tokens(payload: Mapping[str, Any]) -> int:
    """Return about how many tokens a payload has to read; ids are counted."""
    prompt = payload.get("prompt")
    ids = 0
    if isinstance(prompt, list):
        ids = sum(len(part) if isinstance(part, list) else isinstance(part, int) for part in prompt)
    return tokens_of(prompt_text(payload)) + ids


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
