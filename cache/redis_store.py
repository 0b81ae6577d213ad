"""Answers in Redis, shared by all boxes that name the same server.

A scope is three keys in one slot of a cluster: an answer each (`a:KEY`), a sorted set of the questions with their vectors in
the order in which they were put, and the counter that gives the order. Each box keeps a copy of the sets that it searches
and reads only what was added since.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cache.questions import Questions
from cache.store import TTL_SECONDS, Stored, pack, unpack

TIMEOUT_SECONDS = 0.25
PAUSE_SECONDS = 2.0
CLEAR_SECONDS = 60.0
SCOPE_ENTRIES = 2000
MAX_ANSWER_BYTES = 1024 * 1024
_COPIES = 256  # scopes of which a box keeps the questions
_KEY = 64
_LENGTH = struct.Struct("<H")
Result = TypeVar("Result")
Failed = Callable[[str, Exception], None]

# One script, so that a box which reads up to a number has missed nothing below it.
_PUT = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if over > 0 then
  local old = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #old, 2 do redis.call('DEL', ARGV[5] .. string.sub(old[i], 1, 64)) end
end
"""


class RedisStore:
    """Answers in the Redis at `url`, for `ttl` seconds, at most `scope_entries` of a scope: then the oldest leave.

    When the server does not answer within `timeout` seconds, or answers with an error, `failed` is called with the name of
    the operation and the error, the operation is a miss, and for `pause` seconds every other one is, without asking. At its
    next answer `restored` is called.
    """

    def __init__(  # noqa: PLR0913  all but the first have defaults
        self,
        url: str,
        *,
        ttl: float = TTL_SECONDS,
        scope_entries: int = SCOPE_ENTRIES,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        prefix: str = "ekiben",
        timeout: float = TIMEOUT_SECONDS,
        pause: float = PAUSE_SECONDS,
        failed: Failed = lambda _operation, _error: None,
        restored: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0), decode_responses=False
        )
        self._ttl_ms = max(1, int(ttl * 1000))
        self._scope_entries, self._max_answer_bytes, self._prefix = scope_entries, max_answer_bytes, prefix
        self._timeout, self._pause, self._failed = timeout, pause, failed
        self._restored, self._lost = restored, False
        self._asleep_until = 0.0
        self._copies: LRUCache[str, _Copy] = LRUCache(_COPIES)

    async def get(self, scope: str, key: str) -> Stored | None:
        """Return the answer under this key."""
        data = await self._try("get", lambda: self._redis.get(self._name(scope, f"a:{key}")), None)
        try:
            return None if data is None else unpack(data)
        except ValueError as error:
            self._failed("get", error)
            return None

    async def put(self, scope: str, key: str, stored: Stored) -> None:
        """Keep an answer; one of more than `max_answer_bytes`, compressed, is not kept."""
        data = pack(stored)
        if len(data) > self._max_answer_bytes:
            return
        names = [self._name(scope, part) for part in (f"a:{key}", "q", "n")]
        told = [data, self._ttl_ms, _member(key, stored), self._scope_entries, self._name(scope, "a:")]
        await self._try("put", lambda: self._redis.eval(_PUT, len(names), *names, *told), None)

    async def questions(self, scope: str) -> Questions:
        """Return the questions of a scope, as the server has them now or, when it is down, none."""
        copy = self._copies.get(scope)
        if copy is None:
            copy = self._copies[scope] = _Copy()
        fresh = await self._try("questions", lambda: self._since(scope, copy.seen), None)
        if fresh is None:
            return Questions()
        moved = copy.last is not None and (not fresh or fresh[0] != (copy.last, copy.seen))
        if moved or len(copy.questions) > 2 * self._scope_entries:
            # The last that was read has gone or moved, or most of the copy has left the server.
            copy.reset()
            fresh = await self._try("questions", lambda: self._since(scope, 0.0), None) or []
        copy.take(fresh)
        return copy.questions

    async def clear(self) -> None:
        """Forget the answers under this store's prefix, of all boxes."""
        self._copies.clear()
        await self._try("clear", self._delete_all, None, CLEAR_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _name(self, scope: str, part: str) -> str:
        return f"{self._prefix}:cache:{{{scope}}}:{part}"

    async def _since(self, scope: str, seen: float) -> list[tuple[bytes, float]]:
        return await self._redis.zrangebyscore(self._name(scope, "q"), seen, "+inf", withscores=True)

    async def _delete_all(self) -> None:
        names = [name async for name in self._redis.scan_iter(f"{self._prefix}:cache:*", count=1000)]
        for start in range(0, len(names), 1000):
            await self._redis.unlink(*names[start : start + 1000])

    async def _try(
        self, operation: str, work: Callable[[], Awaitable[Result]], otherwise: Result, seconds: float | None = None
    ) -> Result:
        if time.monotonic() < self._asleep_until:
            return otherwise
        try:
            async with asyncio.timeout(seconds or self._timeout):
                found = await work()
        except (RedisError, OSError, TimeoutError) as error:
            self._asleep_until, self._lost = time.monotonic() + self._pause, True
            self._failed(operation, error)
            return otherwise
        if self._lost:
            self._lost = False
            self._restored()
        return found


class _Copy:
    """The questions of a scope as they were read, up to the number `seen`, which `last` has."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.questions, self.seen, self.last = Questions(), 0.0, None

    def take(self, members: Sequence[tuple[bytes, float]]) -> None:
        for member, number in members:
            key, text, vector = _read(member)
            if vector is not None:
                self.questions.add(key, text, vector)
            self.seen, self.last = number, member


def _member(key: str, stored: Stored) -> bytes:
    vector = np.asarray(stored.vector if stored.vector is not None else [], dtype="<f2")
    return key.encode("ascii") + _LENGTH.pack(len(vector)) + vector.tobytes() + stored.question.encode("utf-8", "surrogatepass")


def _read(member: bytes) -> tuple[str, str, Any]:
    (length,) = _LENGTH.unpack_from(member, _KEY)
    start = _KEY + _LENGTH.size
    vector = np.frombuffer(member, dtype="<f2", count=length, offset=start) if length else None
    text = member[start + 2 * length :].decode("utf-8", "surrogatepass")
    return member[:_KEY].decode("ascii"), text, vector
