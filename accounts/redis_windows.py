"""The windows of `windows` for many processes: each step is one script, which Redis runs with nothing between.

Four keys for each subject: `q` requests and `t` tokens, sorted sets of holds by time; `n`, how many tokens each has, and their
sum; `c`, slots by when their lease ends. The clock is Redis's, so processes need not agree on the time. All keys end by
themselves. One server, or one behind Sentinel or a proxy; not Redis Cluster, whose scripts may not touch several subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from accounts.windows import MINUTE, SLOT_WAIT, Clock, Entry, Level, Subject, Taken

PREFIX = "ekiben:rates"
LEASE = 30_000_000
"""For so long the slots of a process that is gone are held."""
UNREACHABLE = (RedisError, OSError, TimeoutError)
_CONNECTIONS = 32
_CHUNK = 500

# Numbers stay below 2^53, microseconds since 1970 too, so a Lua number holds them.
_COMMON = """
local WINDOW, LEASE, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if now < 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local KEEP = math.ceil(WINDOW / 1000) + 1000

local function keys(i) return KEYS[4*i-3], KEYS[4*i-2], KEYS[4*i-1], KEYS[4*i] end

local function forget(q, t, n, c)
  redis.call('ZREMRANGEBYSCORE', q, '-inf', now - WINDOW)
  local old = redis.call('ZRANGEBYSCORE', t, '-inf', now - WINDOW)
  for _, hold in ipairs(old) do
    redis.call('HINCRBY', n, 'sum', -tonumber(redis.call('HGET', n, hold) or 0))
    redis.call('HDEL', n, hold)
  end
  if #old > 0 then redis.call('ZREMRANGEBYSCORE', t, '-inf', now - WINDOW) end
  redis.call('ZREMRANGEBYSCORE', c, '-inf', now)
end

local function request(q, hold, at)
  redis.call('ZADD', q, 'NX', at, hold)
  redis.call('PEXPIRE', q, KEEP)
end

local function put(t, n, hold, at, amount)
  local had = tonumber(redis.call('HGET', n, hold) or 0)
  if amount > 0 then
    redis.call('ZADD', t, 'NX', at, hold)
    redis.call('HSET', n, hold, amount)
  else
    redis.call('ZREM', t, hold)
    redis.call('HDEL', n, hold)
  end
  redis.call('HINCRBY', n, 'sum', amount - had)
  redis.call('PEXPIRE', t, KEEP)
  redis.call('PEXPIRE', n, KEEP)
end

local function slot(c, hold, how)
  redis.call('ZADD', c, how, now + LEASE, hold)
  redis.call('PEXPIRE', c, math.ceil(LEASE / 1000) + 1000)
end
"""
# ARGV from 4: hold, tokens, SLOT_WAIT; then for each subject requests, tokens and concurrency, -1 for none.
_TAKE = (
    _COMMON
    + """
local hold, tokens, SLOT_WAIT = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local reply, refused = {now}, false

local function left(key, at)
  local found = redis.call('ZRANGE', key, at, at, 'WITHSCORES')
  return found[2] and tonumber(found[2]) + WINDOW - now or 0
end

local function room(t, n, sum, limit)
  local start = 0
  while true do
    local some = redis.call('ZRANGE', t, start, start + 99, 'WITHSCORES')
    if #some == 0 then return WINDOW end
    for j = 1, #some, 2 do
      sum = sum - tonumber(redis.call('HGET', n, some[j]) or 0)
      if sum + tokens <= limit then return tonumber(some[j+1]) + WINDOW - now end
    end
    start = start + 100
  end
end

local function level(q, t, n, c, waits)
  local told = {redis.call('ZCARD', q), tonumber(redis.call('HGET', n, 'sum') or 0), redis.call('ZCARD', c),
                left(q, -1), left(t, -1), waits[1], waits[2], waits[3]}
  for _, number in ipairs(told) do reply[#reply + 1] = number end
end

for i = 1, #KEYS / 4 do
  local q, t, n, c = keys(i)
  local rpm, tpm, slots = tonumber(ARGV[3*i+4]), tonumber(ARGV[3*i+5]), tonumber(ARGV[3*i+6])
  forget(q, t, n, c)
  local waits = {0, 0, 0}
  local count, sum = redis.call('ZCARD', q), tonumber(redis.call('HGET', n, 'sum') or 0)
  if rpm >= 0 and count >= rpm then waits[1] = left(q, count - rpm) end
  if tpm >= 0 and tokens > tpm then waits[2] = -1
  elseif tpm >= 0 and sum + tokens > tpm then waits[2] = room(t, n, sum, tpm) end
  if slots >= 0 and redis.call('ZCARD', c) >= slots then waits[3] = SLOT_WAIT end
  refused = refused or waits[1] ~= 0 or waits[2] ~= 0 or waits[3] ~= 0
  level(q, t, n, c, waits)
end
if refused then return reply end

reply = {now}
for i = 1, #KEYS / 4 do
  local q, t, n, c = keys(i)
  if tonumber(ARGV[3*i+4]) >= 0 then request(q, hold, now) end
  if tonumber(ARGV[3*i+5]) >= 0 then put(t, n, hold, now, tokens) end
  if tonumber(ARGV[3*i+6]) >= 0 then slot(c, hold, 'NX') end
  level(q, t, n, c, {0, 0, 0})
end
return reply
"""
)
# ARGV from 4: hold, reserved, used; then for each subject 1 where its tokens are counted.
_GIVE = (
    _COMMON
    + """
local hold, reserved, used = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
for i = 1, #KEYS / 4 do
  local q, t, n, c = keys(i)
  forget(q, t, n, c)
  if ARGV[6 + i] == '1' then
    if redis.call('HEXISTS', n, hold) == 1 then put(t, n, hold, now, math.min(used, reserved)) end
    if used > reserved then put(t, n, hold .. '+', now, used - reserved) end
  end
  redis.call('ZREM', c, hold)
end
return now
"""
)
# ARGV from 4: kind, hold, age, amount of each entry. What is there already is not counted twice.
_RESTORE = (
    _COMMON
    + """
local q, t, n, c = keys(1)
forget(q, t, n, c)
for j = 4, #ARGV, 4 do
  local kind, hold, age = ARGV[j], ARGV[j+1], tonumber(ARGV[j+2])
  if kind == 'slot' then slot(c, hold, 'NX')
  elseif kind == 'lease' then slot(c, hold, 'XX')
  elseif age < WINDOW and kind == 'request' then request(q, hold, now - age)
  elseif age < WINDOW then put(t, n, hold, now - age, tonumber(ARGV[j+3])) end
end
return now
"""
)


class RedisWindows:
    """Windows on a Redis server; every method raises one of UNREACHABLE where it cannot be reached or refuses."""

    def __init__(self, client: Redis, window: int = MINUTE, lease: int = LEASE, clock: Clock | None = None) -> None:
        self._client = client
        # -1: Redis's own clock. Another one is for tests.
        self._fixed = lambda: [window, lease, clock() if clock else -1]
        self._take, self._give, self._restore = (client.register_script(text) for text in (_TAKE, _GIVE, _RESTORE))

    @classmethod
    def connect(cls, url: str, *, timeout: float, window: int = MINUTE, lease: int = LEASE) -> RedisWindows:
        """Return windows on the server of a URL (redis://, rediss://, unix://); connects when first used. Raises ValueError.

        No command takes longer than about twice `timeout` seconds, and none is tried again: it may have been done.
        """
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=timeout, socket_timeout=timeout, socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        return cls(Redis.from_pool(pool), window, lease)

    async def take(self, hold: str, subjects: Sequence[Subject], tokens: int) -> Taken:
        """Count a request for all subjects, or for none where one has no room."""
        told: list[Any] = [*self._fixed(), hold, tokens, SLOT_WAIT]
        for limits in (subject.limits for subject in subjects):
            told += [
                -1 if each is None else each
                for each in (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)
            ]
        at, *numbers = cast("list[int]", await self._take(keys=_keys(*(s.id for s in subjects)), args=told))
        return Taken(at, tuple(_level(numbers[start : start + 8]) for start in range(0, len(numbers), 8)))

    async def give(self, hold: str, subjects: Sequence[Subject], reserved: int, used: int) -> int:
        """End a hold: correct its tokens, free its slots. Returns when, in microseconds."""
        told = [int(subject.limits.tokens_per_minute is not None) for subject in subjects]
        names = _keys(*(subject.id for subject in subjects))
        return cast("int", await self._give(keys=names, args=[*self._fixed(), hold, reserved, used, *told]))

    async def restore(self, name: str, entries: Sequence[Entry]) -> None:
        """Write entries of a subject's log that the server may not have, and renew leases."""
        for start in range(0, len(entries), _CHUNK):
            told: list[Any] = []
            for entry in entries[start : start + _CHUNK]:
                told += [entry.kind, entry.hold, entry.age, entry.amount]
            await self._restore(keys=_keys(name), args=[*self._fixed(), *told])

    async def probe(self) -> None:
        """See whether the server takes writes."""
        await self._client.set(f"{PREFIX}:probe", 1, px=1000)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _keys(*names: str) -> list[str]:
    return [f"{PREFIX}:{name}:{part}" for name in names for part in "qtnc"]


def _level(numbers: Sequence[int]) -> Level:
    first, second, third = (None if wait < 0 else wait for wait in numbers[5:])
    return Level(*numbers[:5], waits=(first, second, third))
