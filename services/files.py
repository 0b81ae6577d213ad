"""OpenAI's file endpoints, for what they cover here: a file is handed in, and attached to the vector store of a route.

A file belongs to the caller's tenant, and within it to whoever has one of the writers' roles of whoever handed it in.
Attached, its text is a document among the collection's uploads under the file's id, for the roles in its attribute `labels`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from rag.access import Access
from rag.apart import read_apart
from rag.decoding import Unreadable
from rag.files import Attachment, Files, FilesFull, StoredFile
from rag.loading import READERS, WRITTEN
from rag.section import written
from rag.uploads import Upload, UploadsBusy
from services.documents import changed, check_labels, desk_of, store
from services.errors import Forbidden, InvalidRequest, Unavailable, UnknownDocument
from services.protocol import LONGEST_DOCUMENT, VectorStoreFileRequest, parse
from services.telemetry import log

if TYPE_CHECKING:
    from services.caller import Caller
    from services.documents import Desk
    from services.pipeline import Pipeline
    from services.routing import Route

PURPOSES = ("assistants", "user_data")
READ_AT_ONCE = 2
_AROUND = 64 * 1024  # what a form adds to its file
_PIECE = 256 * 1024


@dataclass(frozen=True)
class Cabinet:
    """Where files are kept; a few are read at once, each in a process of its own."""

    files: Files
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READ_AT_ONCE))


@dataclass(frozen=True)
class Asked:
    """A request; `named` are the parts of path and query that have names."""

    pipeline: Pipeline
    desks: Mapping[str, Desk]
    cabinet: Cabinet | None
    caller: Caller
    named: Mapping[str, str]
    body: bytes = b""
    content_type: str = ""

    @property
    def open(self) -> Cabinet:
        """Where files are kept; raises InvalidRequest where none are taken."""
        if self.cabinet is None or not self.desks:
            raise InvalidRequest("This box takes no files: none of its collections has `uploads`.", code="unsupported_endpoint")
        return self.cabinet

    @property
    def roles(self) -> frozenset[str]:
        """The writers' roles of the caller; raises Forbidden where he has none."""
        writers = frozenset[str]().union(*(desk.writers for desk in self.desks.values()))
        if not writers & self.caller.roles:
            raise Forbidden(f"Files need one of the roles {', '.join(sorted(writers))}.")
        return writers & self.caller.roles

    def may_find(self, attachment: Attachment) -> bool:
        """Whether the caller may find what a file is attached as."""
        return Access(self.caller.tenant, self.caller.roles).allows(self.caller.tenant, frozenset(attachment.labels))


def longest_upload(asked: Asked) -> int:
    """Return the longest body of an upload, in bytes, before it is read; raises Forbidden and InvalidRequest."""
    files, _ = asked.open.files, asked.roles
    return files.most_bytes + _AROUND


async def upload(asked: Asked) -> dict[str, Any]:
    """Keep the file of a form; raises EkibenError."""
    files, roles = asked.open.files, asked.roles
    async with _form(asked) as form:
        if unknown := sorted(set(form) - {"file", "purpose"}):
            raise InvalidRequest(f"Unrecognized request argument supplied: {unknown[0][:64]}", code="unknown_parameter")
        given, purpose = form.get("file"), form.get("purpose")
        if not isinstance(given, UploadFile) or not given.filename:
            message = "Missing required parameter: file, a part with a file's name in a multipart form"
            raise InvalidRequest(message, param="file", code="missing_required_parameter")
        if purpose not in PURPOSES:
            raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose", code="invalid_value")
        named, data = given.filename, await given.read()
    if not data:
        raise InvalidRequest("The file is empty.", param="file", code="empty_file")
    if len(data) > files.most_bytes:
        raise InvalidRequest(f"The file is over {files.most_bytes} bytes.", param="file", code="file_too_large")
    # A name is shown and tells the kind; it is no path anywhere.
    name = "".join(sign for sign in PurePosixPath(named.replace("\\", "/")).name if sign.isprintable())[-255:]
    file = await _stored(files.put, asked.caller.tenant, name or "file", purpose, roles, data)
    log.info("file added", tenant=asked.caller.tenant, roles=sorted(asked.caller.roles), file=file.id, bytes=file.size)
    return _card(file)


@asynccontextmanager
async def _form(asked: Asked) -> AsyncGenerator[FormData]:
    pieces = [asked.body[start : start + _PIECE] for start in range(0, len(asked.body), _PIECE)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    request = Request({"type": "http", "headers": [(b"content-type", asked.content_type.encode("latin-1", "replace"))]}, receive)
    try:
        form = await request.form(max_files=1, max_fields=8, max_part_size=_AROUND)
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}", param="file", code="invalid_form") from None
    try:
        yield form
    finally:
        await form.close()


async def _list(asked: Asked) -> dict[str, Any]:
    roles, purpose = asked.roles, asked.named.get("purpose")
    found = await asyncio.to_thread(asked.open.files.all, asked.caller.tenant)
    cards = [_card(file) for file in found if file.roles & roles and purpose in {None, file.purpose}]
    return _page(cards, asked, most=10_000, usual=10_000)


async def _retrieve(asked: Asked) -> dict[str, Any]:
    return _card(await _mine(asked, asked.named["file"]))


async def _delete(asked: Asked) -> dict[str, Any]:
    file = await _mine(asked, asked.named["file"])
    # As OpenAI does: a file that is deleted is in no vector store any more.
    attached = {asked.desks[name]: one for name, one in file.attached.items() if name in asked.desks}
    if any(asked.caller.roles.isdisjoint(desk.writers) or not asked.may_find(one) for desk, one in attached.items()):
        raise Forbidden(f"{file.id} is attached where you cannot remove it, and was not deleted.")
    for desk in attached:
        await changed(desk.uploads.remove, file.tenant, file.id)
    await _stored(asked.open.files.delete, file)
    log.info("file deleted", tenant=asked.caller.tenant, roles=sorted(asked.caller.roles), file=file.id)
    return {"id": file.id, "object": "file", "deleted": True}


async def _attach(asked: Asked) -> dict[str, Any]:
    request = parse(VectorStoreFileRequest, asked.body)
    route = store(asked.pipeline, asked.named["name"], asked.caller)
    desk = desk_of(asked.desks, route, asked.caller)
    labels = request.attributes.labelled
    check_labels(labels, asked.caller, "attributes")
    file = await _mine(asked, request.file_id, "file_id")
    if not all(asked.may_find(one) for one in file.attached.values()):
        raise Forbidden(f"{file.id} is attached with labels that are none of your roles, and was not attached anew.")
    failed = None
    try:
        upload = await _read(asked, file, request, labels)
        failed = (await changed(desk.uploads.put, [upload])).refused.get(file.id)
    except Unreadable as error:
        failed = str(error)
    except InvalidRequest as error:
        failed = error.message
    code = "invalid_file" if _kind(file) in READERS else "unsupported_file"
    given = {name: value for name, value in request.attributes.model_dump().items() if value}
    attachment = Attachment(time.time(), labels, given, (code, failed) if failed else None)
    if not await _stored(asked.open.files.attach, file, route.collection, attachment):
        await changed(desk.uploads.remove, file.tenant, file.id)  # it was deleted meanwhile
        raise _unknown(file.id, "file_id")
    log.info(
        "file attached", route=route.name, tenant=asked.caller.tenant, roles=sorted(asked.caller.roles), file=file.id,
        failed=bool(failed),
    )  # fmt: skip
    return _attached(file, attachment, route)


# A reader works on when its caller has left; his place is taken until it ends.
_READERS = ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="reading")


async def _read(asked: Asked, file: StoredFile, request: VectorStoreFileRequest, labels: tuple[str, ...]) -> Upload:
    """Return a file as a document; raises Unreadable."""
    if _kind(file) not in READERS:
        raise Unreadable(f"unknown kind {_kind(file) or file.name!r}; readable are {', '.join(READERS)}")
    async with asked.open.reading:
        try:
            data = await asyncio.to_thread(asked.open.files.content, file)
        except FileNotFoundError:
            raise _unknown(file.id, "file_id") from None
        reading = await asyncio.get_running_loop().run_in_executor(_READERS, read_apart, data, _kind(file))
    if sum(len(block.text) for section in reading.sections for block in section.blocks) > LONGEST_DOCUMENT:
        raise Unreadable(f"over {LONGEST_DOCUMENT} characters; split it")
    given = request.attributes
    title = given.title or reading.title or ("" if any(section.heading for section in reading.sections) else file.name)
    return Upload(file.id, file.tenant, written(reading), title, labels, given.language, given.date, WRITTEN)


async def _list_attached(asked: Asked) -> dict[str, Any]:
    route = store(asked.pipeline, asked.named["name"], asked.caller)
    found = await asyncio.to_thread(asked.open.files.all, asked.caller.tenant)
    told = [_attached(file, one, route) for file in found if (one := await _attachment(asked, file, route)) is not None]
    wanted = asked.named.get("filter")
    return _page([one for one in told if wanted in {None, one["status"]}], asked, most=100, usual=20)


async def _retrieve_attached(asked: Asked) -> dict[str, Any]:
    return _attached(*await _found_attached(asked))


async def _detach(asked: Asked) -> dict[str, Any]:
    desk_of(asked.desks, store(asked.pipeline, asked.named["name"], asked.caller), asked.caller)
    file, _, route = await _found_attached(asked)
    desk = desk_of(asked.desks, route, asked.caller)
    await changed(desk.uploads.remove, file.tenant, file.id)
    await _stored(asked.open.files.attach, file, route.collection, None)
    log.info("file detached", route=route.name, tenant=asked.caller.tenant, roles=sorted(asked.caller.roles), file=file.id)
    return {"id": file.id, "object": "vector_store.file.deleted", "deleted": True}


async def _found_attached(asked: Asked) -> tuple[StoredFile, Attachment, Route]:
    route = store(asked.pipeline, asked.named["name"], asked.caller)
    file = await asyncio.to_thread(asked.open.files.get, asked.caller.tenant, asked.named["file"])
    attachment = await _attachment(asked, file, route) if file else None
    if file is None or attachment is None:
        raise UnknownDocument(f"No file {asked.named['file'][:64]!r} in vector store {route.name!r}.", param="file_id")
    return file, attachment, route


async def _attachment(asked: Asked, file: StoredFile, route: Route) -> Attachment | None:
    """Return what a file is attached to a route's collection as, None where it is not, or not for this caller."""
    one, desk = file.attached.get(route.collection or ""), asked.desks.get(route.collection or "")
    if one is None or desk is None or not asked.may_find(one):
        return None
    # As a document it may have been removed on its own.
    there = one.failed or await asyncio.to_thread(desk.uploads.has, file.tenant, file.id)
    return one if there else None


async def _mine(asked: Asked, identity: str, param: str = "id") -> StoredFile:
    roles = asked.roles
    file = await asyncio.to_thread(asked.open.files.get, asked.caller.tenant, identity)
    if file is None or not file.roles & roles:
        raise _unknown(identity, param)
    return file


def _unknown(identity: str, param: str) -> UnknownDocument:
    return UnknownDocument(f"No such File object: {identity[:64]}", param=param)


_Result = TypeVar("_Result")


async def _stored(function: Callable[..., _Result], *args: object) -> _Result:
    """Change what is stored of files; raises InvalidRequest and Unavailable."""
    try:
        return await asyncio.to_thread(function, *args)
    except FilesFull as error:
        raise InvalidRequest(f"The file was not taken: {error}.", param="file", code="file_limit") from None
    except UploadsBusy as error:
        raise Unavailable(f"The files cannot be changed now: {error}.") from error
    except OSError as error:
        raise Unavailable("The file could not be stored; try again later.") from error


def _kind(file: StoredFile) -> str:
    return Path(file.name).suffix.lower()


def _card(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id, "object": "file", "bytes": file.size, "created_at": int(file.created), "expires_at": None,
        "filename": file.name, "purpose": file.purpose, "status": "processed", "status_details": None,
    }  # fmt: skip


def _attached(file: StoredFile, attachment: Attachment, route: Route) -> dict[str, Any]:
    error = {"code": attachment.failed[0], "message": attachment.failed[1]} if attachment.failed else None
    return {
        "id": file.id, "object": "vector_store.file", "created_at": int(attachment.created), "vector_store_id": route.name,
        "status": "failed" if error else "completed", "last_error": error, "usage_bytes": 0 if error else file.size,
        "attributes": dict(attachment.attributes), "chunking_strategy": {"type": "other"},
    }  # fmt: skip


def _page(found: list[dict[str, Any]], asked: Asked, *, most: int, usual: int) -> dict[str, Any]:
    """Return a page of a list that is oldest first, by `order`, `limit`, `after` and `before` of the query."""
    limit, order = asked.named.get("limit", str(usual)), asked.named.get("order", "desc")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}.", param="limit", code="invalid_value")
    if order not in {"asc", "desc"}:
        raise InvalidRequest("order must be asc or desc.", param="order", code="invalid_value")
    ordered = found if order == "asc" else found[::-1]
    places = {one["id"]: place for place, one in enumerate(ordered)}
    start, end = 0, len(ordered)
    for name in ("after", "before"):
        if name in asked.named and asked.named[name] not in places:
            raise InvalidRequest(f"{name} names no file of this list.", param=name, code="invalid_value")
    if "after" in asked.named:
        start = places[asked.named["after"]] + 1
    if "before" in asked.named:
        end = places[asked.named["before"]]
    data = ordered[start:end][: int(limit)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": start + len(data) < end}


ENDPOINTS: tuple[tuple[str, str, Callable[[Asked], Awaitable[dict[str, Any]]]], ...] = (
    ("GET", "/v1/files", _list),
    ("GET", "/v1/files/{file}", _retrieve),
    ("DELETE", "/v1/files/{file}", _delete),
    ("POST", "/v1/vector_stores/{name}/files", _attach),
    ("GET", "/v1/vector_stores/{name}/files", _list_attached),
    ("GET", "/v1/vector_stores/{name}/files/{file}", _retrieve_attached),
    ("DELETE", "/v1/vector_stores/{name}/files/{file}", _detach),
)
"""Method, path, and what answers; `upload` stands apart: its body is a form, and longer."""
