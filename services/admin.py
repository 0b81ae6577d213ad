"""The admin API: adapters are loaded, unloaded and promoted while the box serves. Apart from the data plane.

GET /admin/adapters says what is loaded; POST /admin/adapters/{load,unload,promote,rollback} change it on every replica.
It is for who has EKIBEN_ADMIN_TOKEN, or a key with the role `ekiben-admin`; all others get 401 or 403.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from adapters.registry import LIVE, REFERENCE, Reference, Registry
from services.errors import BodyTooLarge, EkibenError, InvalidRequest, Unavailable
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
Form = TypeVar("Form", bound=BaseModel)


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
    """Return the routes; they find the slots, and who is let in, in the app's state, as the data plane finds its parts."""
    return [
        Route("/admin/adapters", _overview, methods=["GET"]),
        Route("/admin/adapters/load", _changing(_Load, _load), methods=["POST"]),
        Route("/admin/adapters/unload", _changing(_Change, _unload), methods=["POST"]),
        Route("/admin/adapters/promote", _changing(_Point, _promote), methods=["POST"]),
        Route("/admin/adapters/rollback", _changing(_Point, _rollback), methods=["POST"]),
    ]


async def authorized(request: Request) -> str:
    """Return who asks, once that is an administrator; raises EkibenError."""
    parts = request.app.state.parts
    return await parts.auth.administrator(request.headers, parts.admin_token)


def _slots(request: Request) -> Slots:
    return request.app.state.parts.slots


async def _overview(request: Request) -> JSONResponse:
    try:
        await authorized(request)
        return JSONResponse(_slots(request).overview())
    except EkibenError as error:
        return refused(error)


def _changing(
    form: type[Asked], change: Callable[[Slots, Asked], Awaitable[str]]
) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def endpoint(request: Request) -> JSONResponse:
        try:
            who = await authorized(request)
            label = await change(_slots(request), await parsed(form, request))
        except EkibenError as error:
            return refused(error)
        except OSError as error:  # the registry's folder, or its lock
            log.warning("adapters not changed", kind=type(error).__name__)
            return refused(Unavailable("The registry of adapters cannot be written now; see EKIBEN_STATE_DIR."))
        log.info("adapters changed", change=request.url.path.rpartition("/")[2], adapter=label, by=who)
        return JSONResponse({"adapter": label, **_slots(request).overview()})

    return endpoint


async def parsed(form: type[Form], request: Request, empty: bytes = b"") -> Form:
    """Return what was sent, with `empty` in the place of nothing; raises BodyTooLarge and InvalidRequest."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is over {MAX_BODY_BYTES} bytes.")
    try:
        return form.model_validate_json(bytes(body) or empty, strict=True)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(f"{where}: {first['msg']}", param=where) from error


def refused(error: EkibenError) -> JSONResponse:
    """Return the answer that tells it."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())
