"""The admin API: adapters are loaded, unloaded and promoted while the box serves. Bearer token, apart from the data plane.

GET /admin/adapters says what is loaded; POST /admin/adapters/{load,unload,promote,rollback} change it on every replica.
Without EKIBEN_ADMIN_TOKEN all of it answers 401.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from adapters.registry import LIVE, REFERENCE, Reference, Registry
from services.errors import BodyTooLarge, EkibenError, InvalidRequest, Unauthorized, Unavailable
from services.telemetry import log

if TYPE_CHECKING:
    from services.slots import Slots

MAX_BODY_BYTES = 64 * 1024


def _no_version(alias: str) -> str:
    if Registry().resolve(Reference("", alias)) is not None:
        msg = "an alias must not look like a version"
        raise ValueError(msg)
    return alias


_Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$"), AfterValidator(_no_version)]


class _Change(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    adapter: str = Field(pattern=REFERENCE)


Asked = TypeVar("Asked", bound=_Change)


class _Load(_Change):
    pin: bool = False


class _Point(_Change):
    alias: _Alias = LIVE


async def _load(slots: Slots, asked: _Load) -> str:
    return await slots.load(asked.adapter, pin=asked.pin)


async def _unload(slots: Slots, asked: _Change) -> str:
    return await slots.unload(asked.adapter)


async def _promote(slots: Slots, asked: _Point) -> str:
    return await slots.promote(asked.adapter, asked.alias)


async def _rollback(slots: Slots, asked: _Point) -> str:
    return await slots.roll_back(asked.adapter, asked.alias)


def admin_routes() -> list[Route]:
    """Return the routes; they find the slots and the token in the app's state, as the data plane finds its parts."""
    return [
        Route("/admin/adapters", _overview, methods=["GET"]),
        Route("/admin/adapters/load", _changing(_Load, _load), methods=["POST"]),
        Route("/admin/adapters/unload", _changing(_Change, _unload), methods=["POST"]),
        Route("/admin/adapters/promote", _changing(_Point, _promote), methods=["POST"]),
        Route("/admin/adapters/rollback", _changing(_Point, _rollback), methods=["POST"]),
    ]


def _authorized(request: Request) -> Slots:
    parts = request.app.state.parts
    expected: str | None = parts.admin_token
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if expected is None:
        raise Unauthorized("The admin API is off: start the box with EKIBEN_ADMIN_TOKEN.")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), expected.encode()):
        raise Unauthorized("Send the admin token as Authorization: Bearer TOKEN.")
    return parts.slots


async def _overview(request: Request) -> JSONResponse:
    try:
        return JSONResponse(_authorized(request).overview())
    except EkibenError as error:
        return _refused(error)


def _changing(
    form: type[Asked], change: Callable[[Slots, Asked], Awaitable[str]]
) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def endpoint(request: Request) -> JSONResponse:
        try:
            slots = _authorized(request)
            label = await change(slots, await _parse(form, request))
        except EkibenError as error:
            return _refused(error)
        except OSError as error:  # the registry's folder, or its lock
            log.warning("adapters not changed", kind=type(error).__name__)
            return _refused(Unavailable("The registry of adapters cannot be written now; see EKIBEN_STATE_DIR."))
        log.info("adapters changed", change=request.url.path.rpartition("/")[2], adapter=label)
        return JSONResponse({"adapter": label, **slots.overview()})

    return endpoint


async def _parse(form: type[Asked], request: Request) -> Asked:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is over {MAX_BODY_BYTES} bytes.")
    try:
        return form.model_validate_json(bytes(body))
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(f"{where}: {first['msg']}", param=where) from error


def _refused(error: EkibenError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())
