"""API keys over the admin API: GET and POST /admin/keys, POST /admin/keys/ID/rotate and /revoke.

A secret is in the answer to POST /admin/keys and to a rotation, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from accounts.database import DatabaseUnavailable
from accounts.keys import YEAR_10000, Key, KeyEnded, Made, NewKey, NoSuchKey
from services.admin import authorized, parsed, refused
from services.errors import EkibenError, InvalidRequest, KeyRefused, KeysUnavailable, UnknownKey
from services.telemetry import log

if TYPE_CHECKING:
    from accounts.keys import KeyStore
    from services.auth import Auth

_MOST_GRACE = 30 * 86_400


class _Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    grace_seconds: float = Field(default=0, ge=0, le=_MOST_GRACE, allow_inf_nan=False)
    expires_at: float | None = Field(default=None, gt=0, allow_inf_nan=False)


def key_routes() -> list[Route]:
    """Return the routes; they find who is let in, and the keys, in the app's state."""
    return [
        Route("/admin/keys", _answering(_list), methods=["GET"]),
        Route("/admin/keys", _answering(_create), methods=["POST"]),
        Route("/admin/keys/{id}/rotate", _answering(_rotate), methods=["POST"]),
        Route("/admin/keys/{id}/revoke", _answering(_revoke), methods=["POST"]),
    ]


async def _list(keys: KeyStore, _request: Request) -> list[Key]:
    return await keys.list()


async def _create(keys: KeyStore, request: Request) -> Made:
    new = await parsed(NewKey, request)
    _in_future(new.expires_at)
    return await keys.create(new)


async def _rotate(keys: KeyStore, request: Request) -> Made:
    asked = await parsed(_Rotation, request, b"{}")
    _in_future(asked.expires_at)
    return await keys.rotate(request.path_params["id"], grace_seconds=asked.grace_seconds, expires_at=asked.expires_at)


async def _revoke(keys: KeyStore, request: Request) -> Key:
    return await keys.revoke(request.path_params["id"])


def _answering(
    work: Callable[[KeyStore, Request], Awaitable[Key | Made | list[Key]]],
) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def endpoint(request: Request) -> JSONResponse:
        try:
            who = await authorized(request)
            auth: Auth = request.app.state.parts.auth
            done = await work(await auth.store(), request)
        except NoSuchKey:
            return refused(UnknownKey("There is no key of that id; GET /admin/keys lists them."))
        except KeyEnded as error:
            return refused(KeyRefused(f"The key was not rotated: {error}."))
        except DatabaseUnavailable:
            return refused(KeysUnavailable("API keys cannot be looked up or changed now; try again."))
        except EkibenError as error:
            return refused(error)
        if isinstance(done, list):
            return JSONResponse({"object": "list", "data": [_told(key) for key in done]})
        key, told = (done.key, {"secret": done.secret}) if isinstance(done, Made) else (done, {})
        auth.forget(key.id)
        log.info("key changed", change=work.__name__.strip("_"), key=key.prefix, by=who)
        return JSONResponse({**_told(key), **told}, headers={"cache-control": "no-store"})

    return endpoint


def _in_future(expires_at: float | None) -> None:
    if expires_at is not None and expires_at >= YEAR_10000:
        raise InvalidRequest("expires_at: too far off; it is in seconds since 1970, not milliseconds", param="expires_at")
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequest("expires_at: not in the future; it is in seconds since 1970", param="expires_at")


def _told(key: Key) -> dict[str, Any]:
    return {"object": "api_key", **key.told(time.time())}
