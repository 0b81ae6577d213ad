"""Who a request is from: an API key, a trusted proxy's headers, or nobody where the bundle lets nobody in.

Verified keys are remembered for seconds, so that a revocation is seen by every replica within them and a request does not wait
for the database. What is not remembered, and cannot be looked up, is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Literal

from cachetools import TTLCache

from accounts.database import DatabaseUnavailable, SchemaMismatch
from accounts.keys import Key, KeyStore, digest_of, is_secret
from services.caller import Caller, CallerHeaders
from services.errors import Forbidden, KeysUnavailable, Unauthorized
from services.telemetry import log

ADMIN_ROLE = "ekiben-admin"
GOOD_SECONDS = 5.0
BAD_SECONDS = 1.0
LOOKUP_SECONDS = 3.0
_MOST = 10_000
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
Anonymous = bool | Literal["loopback"]


class Auth:
    """What lets requests in. Made without arguments it lets nobody in.

    `keys` opens the store of keys, at each time that it is needed; `clock` gives seconds since 1970, `timer` seconds for how
    long a key is remembered. `away` is told at each look-up whether the store could not be asked.
    """

    def __init__(
        self,
        keys: Callable[[], Awaitable[KeyStore]] | None = None,
        *,
        callers: CallerHeaders | None = None,
        anonymous: Anonymous = False,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        away: Callable[[bool], None] = lambda _away: None,
    ) -> None:
        self._away = away
        self._open, self._callers, self._anonymous, self._clock = keys, callers or CallerHeaders(), anonymous, clock
        # Apart, so that no flood of wrong keys drives out the right ones.
        self._good: TTLCache[str, Key] = TTLCache(_MOST, GOOD_SECONDS, timer)
        self._bad: TTLCache[str, bool] = TTLCache(_MOST, BAD_SECONDS, timer)
        self._asking: dict[str, asyncio.Task[Key | None]] = {}

    async def caller(self, headers: Mapping[str, str], peer: str | None) -> Caller:
        """Return who sent a request; `headers` has names in lower case, `peer` is the address at the other end.

        Raises Unauthorized, Forbidden for keys of the admin API, and KeysUnavailable.
        """
        secret = presented(headers)
        if secret is not None:
            key = await self.key(secret)
            if ADMIN_ROLE in key.roles:
                raise Forbidden(f"A key with the role {ADMIN_ROLE} is for the admin API alone.")
            return Caller(key.tenant, key.roles, key)
        if self._callers.sent(headers) or self._lets_in(headers, peer):
            return self._callers.read(headers)
        given = "This is no API key of this box" if headers.get("authorization") or headers.get("x-api-key") else "No API key"
        raise Unauthorized(f"{given}; send one as Authorization: Bearer ek_...")

    async def administrator(self, headers: Mapping[str, str], token: str | None) -> str:
        """Return who asks the admin API, "token" or a key's prefix; raises Unauthorized, Forbidden and KeysUnavailable."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if token is not None and scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode()):
            return "token"
        secret = presented(headers)
        if secret is not None:
            key = await self.key(secret)
            if ADMIN_ROLE not in key.roles:
                raise Forbidden(f"The admin API needs a key with the role {ADMIN_ROLE}.")
            return key.prefix
        if token is None:
            raise Unauthorized(
                f"The admin API is off: start the box with EKIBEN_ADMIN_TOKEN, or send a key of role {ADMIN_ROLE}."
            )
        raise Unauthorized("Send the admin token as Authorization: Bearer TOKEN.")

    async def key(self, secret: str) -> Key:
        """Return the key of a secret, remembered or looked up; raises Unauthorized and KeysUnavailable."""
        key = await self._find(secret) if is_secret(secret) else None
        if key is None:
            raise Unauthorized("The API key is wrong, or was revoked.")
        if key.expired(self._clock()):
            raise Unauthorized("The API key has expired; ask whoever gave it to you for another.", code="expired_api_key")
        return key

    def forget(self, identity: str) -> None:
        """Look a key up again at its next use: it was changed here."""
        for digest in [digest for digest, key in self._good.items() if key.id == identity]:
            self._good.pop(digest, None)

    async def store(self) -> KeyStore:
        """Return the store of keys; raises KeysUnavailable."""
        if self._open is None:
            raise KeysUnavailable("This box has no database of API keys.")
        try:
            return await self._open()
        except DatabaseUnavailable as error:
            log.warning("no database of keys", problem=str(error))
            raise KeysUnavailable("API keys cannot be looked up or changed now; try again.") from error

    async def ready(self) -> None:
        """Open the store before the first key is sent. One that is away is told in the log: it is tried again at each need.

        Raises SchemaMismatch: one that is of another version is so at each need.
        """
        try:
            await self.store()
        except KeysUnavailable as error:
            if isinstance(error.__cause__, SchemaMismatch):
                raise error.__cause__ from None

    async def _find(self, secret: str) -> Key | None:
        digest = digest_of(secret)
        if (key := self._good.get(digest)) is not None:
            return key
        if digest in self._bad:
            return None
        # Requests with one key, all at once, are one question.
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._ask(secret, digest))
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(asking)

    def _asked(self, digest: str, done: asyncio.Task[Key | None]) -> None:
        self._asking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # seen, also where everybody who waited has left

    async def _ask(self, secret: str, digest: str) -> Key | None:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                key = await (await self.store()).verify(secret)
        except (DatabaseUnavailable, KeysUnavailable, TimeoutError) as error:
            self._away(True)  # noqa: FBT003  a callback has no names
            if isinstance(error, KeysUnavailable):
                raise
            log.warning("no database of keys", problem=str(error) or f"no answer in {LOOKUP_SECONDS:g} s")
            raise KeysUnavailable("API keys cannot be looked up now; try again.") from error
        self._away(False)  # noqa: FBT003
        if key is None:
            self._bad[digest] = True
            log.info("key refused", key=secret[:19])
        else:
            self._good[digest] = key
        return key

    def _lets_in(self, headers: Mapping[str, str], peer: str | None) -> bool:
        if isinstance(self._anonymous, bool):
            return self._anonymous
        # Behind a proxy on this machine everybody seems to be on it.
        return _is_loopback(peer) and not any(name in headers for name in _FORWARDED)


def presented(headers: Mapping[str, str]) -> str | None:
    """Return what claims to be one of our keys, from Authorization or x-api-key; `headers` has names in lower case.

    Clients of OpenAI's API always send some key: one that is not of our form is none.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = [bearer.strip()] if scheme.lower() == "bearer" else []
    return next((text for text in (*given, headers.get("x-api-key", "").strip()) if text.startswith("ek_")), None)


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
