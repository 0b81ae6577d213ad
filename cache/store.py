"""Where answers are kept: the interface, what is kept, and the store in this process's memory."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cachetools import TTLCache

from cache.questions import Questions

TTL_SECONDS = 3600.0
MAX_ENTRIES = 10_000
MAX_BYTES = 64 * 1024 * 1024
_FLOAT_BYTES = 4
_OVERHEAD = 600  # bytes of an entry beside its text: keys, objects, places in dictionaries


@dataclass(frozen=True)
class Stored:
    """A whole answer, the question it answers, that question's vector where it has one, and when it was made (Unix seconds)."""

    body: dict[str, Any]
    question: str
    created: float
    vector: Sequence[float] | None = None


class Store(Protocol):
    """Answers by scope and key, which leave when they are too old or too many. No method raises when the store is down."""

    async def get(self, scope: str, key: str) -> Stored | None:
        """Return the answer under this key, without its vector; None where there is none."""
        ...

    async def put(self, scope: str, key: str, stored: Stored) -> None:
        """Keep an answer; one that is too large is not kept."""
        ...

    async def questions(self, scope: str) -> Questions:
        """Return the questions of a scope that have vectors. Some may have lost their answers: `get` tells."""
        ...

    async def clear(self) -> None:
        """Forget everything."""
        ...

    async def close(self) -> None:
        """Give back what the store holds."""
        ...


def pack(stored: Stored) -> bytes:
    """Return an answer without its vector as compressed JSON."""
    told = {"body": stored.body, "question": stored.question, "created": stored.created}
    return zlib.compress(json.dumps(told, ensure_ascii=True, separators=(",", ":")).encode("ascii"), 1)


def unpack(data: bytes) -> Stored:
    """Read what `pack` returned; raises ValueError."""
    try:
        told = json.loads(zlib.decompress(data))
        return Stored(dict(told["body"]), str(told["question"]), float(told["created"]))
    except (zlib.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an answer of this cache: {type(error).__name__}") from error


class _Entries(TTLCache[tuple[str, str], tuple[bytes, int]]):
    """Answers with the bytes of their vectors; of every one that leaves, by age or for others, `gone` hears."""

    def __init__(self, max_bytes: int, ttl: float, timer: Callable[[], float], gone: Callable[[str, str], None]) -> None:
        super().__init__(max_bytes, ttl, timer=timer, getsizeof=_size)
        self._gone = gone

    def popitem(self) -> tuple[tuple[str, str], tuple[bytes, int]]:
        key, value = super().popitem()
        self._gone(*key)
        return key, value

    def expire(self, time: float | None = None) -> Any:
        """Drop the old ones, as the base class does before each change."""
        dropped = list(super().expire(time))
        for key, _ in dropped:
            self._gone(*key)
        return dropped


def _size(value: tuple[bytes, int]) -> int:
    return len(value[0]) + value[1] + _OVERHEAD


class MemoryStore:
    """Answers in memory: of one process, gone with it.

    `ttl` in seconds; the least recently used leave when there are more than `max_entries` or `max_bytes`, vectors included.
    """

    def __init__(
        self,
        ttl: float = TTL_SECONDS,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries = max_entries
        self._scopes: dict[str, Questions] = {}
        self._entries = _Entries(max_bytes, ttl, timer, self._forget)

    async def get(self, scope: str, key: str) -> Stored | None:
        """Return the answer under this key."""
        found = self._entries.get((scope, key))
        return None if found is None else unpack(found[0])

    async def put(self, scope: str, key: str, stored: Stored) -> None:
        """Keep an answer; one that is larger than the whole store is not kept."""
        value = pack(stored), _FLOAT_BYTES * len(stored.vector or ())
        if _size(value) > self._entries.maxsize:
            return
        while (scope, key) not in self._entries and len(self._entries) >= self._max_entries:
            self._entries.popitem()
        self._entries[scope, key] = value
        if stored.vector is None:
            self._forget(scope, key)
        else:
            self._scopes.setdefault(scope, Questions()).add(key, stored.question, stored.vector)

    async def questions(self, scope: str) -> Questions:
        """Return the questions of a scope."""
        self._entries.expire()
        return self._scopes.get(scope) or Questions()

    async def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._scopes.clear()

    async def close(self) -> None:
        """Nothing is held."""

    def _forget(self, scope: str, key: str) -> None:
        questions = self._scopes.get(scope)
        if questions is not None:
            questions.remove(key)
            if not questions:
                del self._scopes[scope]
