"""API keys: made, listed, rotated, revoked and verified, in the database that all replicas share.

A secret is `ek_ID_` and 256 random bits. Its SHA-256 is kept, never the secret: what is random needs no slow hash, and a slow one
would be paid for at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_serializer
from sqlalchemy import JSON, Column, Float, Row, String, Table, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from accounts.database import metadata, reached

_ID = "[0-9a-f]{16}"
_SECRET = re.compile(rf"ek_({_ID})_[A-Za-z0-9_-]{{43}}")
_SHOWN = re.compile(rf"(?:ek_)?({_ID})")
YEAR_10000 = 253_402_300_800
"""In seconds since 1970: from then on no calendar of Python's has a date."""
_NOBODY = "0" * 64
"""Compared with where there is no key of an id: no SHA-256 that anybody knows a text for."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Names = Annotated[frozenset[Text], Field(max_length=64)]
_Count = Annotated[int, Field(gt=0, lt=2**53)]
_Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Time = Annotated[float, Field(gt=0, allow_inf_nan=False)]

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("previous_digest", String(64)),
    Column("previous_until", Float),
    Column("name", String(128), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("settings", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)


class NoSuchKey(LookupError):
    """There is no key of that id."""


class KeyEnded(ValueError):
    """The key was revoked or has expired, so that it cannot be rotated; the message says which."""


class NewKey(BaseModel):
    """What a key is for, and how far it reaches; None is no limit of the key's own, an empty set of names is all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    owner: Text
    tenant: Text
    roles: Names = frozenset()
    routes: Names = frozenset()
    """Public model names that it may use, the embedding model's too."""
    adapters: Names = frozenset()
    """Adapters, by name, that may answer it; routes without an adapter are open to it."""
    expires_at: _Time | None = None
    """Seconds since 1970."""
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrency: _Count | None = None
    budget_day: _Amount | None = None
    """In the bundle's currency, as the month's."""
    budget_month: _Amount | None = None

    @field_serializer("roles", "routes", "adapters")
    def _sorted(self, names: frozenset[str]) -> list[str]:
        return sorted(names)


class Key(NewKey):
    """A key as it is kept; the secret is not here."""

    id: str
    created_at: float
    revoked_at: float | None = None
    previous_until: float | None = None
    """Until when the secret before the last rotation is good."""

    @property
    def prefix(self) -> str:
        """What a secret of this key begins with: to recognise it by, and no secret."""
        return f"ek_{self.id}"

    def expired(self, now: float) -> bool:
        """Whether it has expired by `now`, in seconds since 1970."""
        return self.expires_at is not None and self.expires_at <= now

    def status(self, now: float) -> str:
        """Return active, expired or revoked."""
        return "revoked" if self.revoked_at is not None else "expired" if self.expired(now) else "active"

    def told(self, now: float) -> dict[str, Any]:
        """Return it as lists and the admin API show it, under its prefix; times are in seconds since 1970."""
        return {"id": self.prefix, "status": self.status(now), **self.model_dump(mode="json", exclude={"id"})}


class Made(NamedTuple):
    """A key and its secret, which nobody can be told a second time."""

    key: Key
    secret: str


def is_secret(text: str) -> bool:
    """Whether a text has the form of a key's secret."""
    return _SECRET.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """Return what is kept of a secret: its SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyStore:
    """The keys in a database; every method raises DatabaseUnavailable. `clock` gives seconds since 1970."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    async def create(self, new: NewKey) -> Made:
        """Make a key; its secret is told here and never again."""
        identity, now = secrets.token_hex(8), self._clock()
        secret = _new_secret(identity)
        told = new.model_dump(mode="json")
        columns = {name: told.pop(name) for name in ("name", "owner", "tenant", "expires_at")}
        async with reached(self._engine) as connection:
            await connection.execute(
                insert(keys).values(id=identity, digest=digest_of(secret), settings=told, created_at=now, **columns)
            )
        return Made(Key(id=identity, created_at=now, **new.model_dump()), secret)

    async def list(self) -> list[Key]:
        """Return all keys, also those that ended, the oldest first."""
        async with reached(self._engine, begin=False) as connection:
            rows = (await connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))).all()
        return [_key(row) for row in rows]

    async def rotate(self, name: str, *, grace_seconds: float = 0, expires_at: float | None = None) -> Made:
        """Give a key another secret; the one before stays good for `grace_seconds`, and one before that not at all.

        `name` is an id or a prefix; `expires_at`, where given, is the key's from now on. Raises NoSuchKey and KeyEnded.
        """
        identity, now = _identity(name), self._clock()
        secret = _new_secret(identity)
        changed: dict[str, Any] = {
            "previous_digest": keys.c.digest if grace_seconds > 0 else None,
            "previous_until": now + grace_seconds if grace_seconds > 0 else None,
            "digest": digest_of(secret),
        }
        # A key that expired is not raised from the dead by a new secret alone.
        alive = keys.c.revoked_at.is_(None)
        if expires_at is None:
            alive = and_(alive, or_(keys.c.expires_at.is_(None), keys.c.expires_at > now))
        else:
            changed["expires_at"] = expires_at
        async with reached(self._engine) as connection:
            done = await connection.execute(update(keys).where(keys.c.id == identity, alive).values(changed))
            row = (await connection.execute(select(keys).where(keys.c.id == identity))).one_or_none()
        if row is None:
            raise NoSuchKey("there is no key of that id")
        key = _key(row)
        if done.rowcount == 0:
            remedy = "make a new one" if key.revoked_at is not None else "give it another expiry with the rotation"
            raise KeyEnded(f"{key.prefix} is {key.status(now)}; {remedy}")
        return Made(key, secret)

    async def revoke(self, name: str) -> Key:
        """End a key, by id or prefix, with both its secrets; a second time changes nothing. Raises NoSuchKey."""
        identity = _identity(name)
        ended = func.coalesce(keys.c.revoked_at, self._clock())
        async with reached(self._engine) as connection:
            await connection.execute(
                update(keys).where(keys.c.id == identity).values(revoked_at=ended, previous_digest=None, previous_until=None)
            )
            row = (await connection.execute(select(keys).where(keys.c.id == identity))).one_or_none()
        if row is None:
            raise NoSuchKey("there is no key of that id")
        return _key(row)

    async def verify(self, secret: str) -> Key | None:
        """Return the key of a secret, or None where there is none or it was revoked.

        An expired key is returned: ask `expired`, at every use, as time goes on also for keys that are kept in memory. By the
        secret before a rotation, the key expires with that secret's grace.
        """
        form = _SECRET.fullmatch(secret)
        if form is None:
            return None
        async with reached(self._engine, begin=False) as connection:
            row = (await connection.execute(select(keys).where(keys.c.id == form[1]))).one_or_none()
        given = digest_of(secret)
        # All comparisons are made, of equal lengths, whatever the first one gave.
        current = hmac.compare_digest(row.digest if row else _NOBODY, given)
        previous = hmac.compare_digest((row.previous_digest if row else None) or _NOBODY, given)
        if row is None or row.revoked_at is not None or not (current or previous):
            return None
        key = _key(row)
        if current:
            return key
        ends = min(until for until in (key.expires_at, key.previous_until or 0.0) if until is not None)
        return key.model_copy(update={"expires_at": ends})


def _new_secret(identity: str) -> str:
    return f"ek_{identity}_{secrets.token_urlsafe(32)}"


def _identity(name: str) -> str:
    form = _SHOWN.fullmatch(name)
    if form is None:
        raise NoSuchKey("a key is named by its id, ek_ and 16 characters")
    return form[1]


def _key(row: Row[Any]) -> Key:
    columns = ("id", "name", "owner", "tenant", "created_at", "expires_at", "revoked_at", "previous_until")
    return Key(**row.settings, **{name: getattr(row, name) for name in columns})
