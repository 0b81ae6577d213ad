"""Documents over HTTP: searching what a route answers from, in our form and in that of OpenAI's vector stores; adding to it.

A vector store is a route with a collection, under the route's name: what a search shows has passed the route's guards, and is
what this caller may see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rag.access import Access
from rag.index import UnusableIndex
from rag.uploads import Upload, Uploads, UploadsBusy
from services.errors import Forbidden, InvalidRequest, RetrievalUnavailable, Unavailable, UnknownDocument, UnknownModel
from services.protocol import DocumentsRequest, NewDocument, SearchRequest, VectorStoreSearchRequest, parse
from services.routing import check_open
from services.telemetry import log

if TYPE_CHECKING:
    from rag.context import Passage
    from rag.files import Files
    from services.caller import Caller
    from services.pipeline import Pipeline
    from services.routing import Route
    from services.telemetry import Record


async def search(pipeline: Pipeline, body: bytes, caller: Caller, blank: Record | None = None) -> dict[str, Any]:
    """Return the passages that a route's collection holds about a query, best first; raises EkibenError.

    `blank` is filled on the way, as a pipeline's.
    """
    request = parse(SearchRequest, body)
    route = pipeline.route(request, caller)
    found = await _found(pipeline, request, route, blank)
    data = [{"number": number, **_told(passage)} for number, passage in enumerate(found, start=1)]
    about = {name: version for name, version in route.versions().items() if version is not None}
    return {"object": "list", "model": route.name, "data": data, "ekiben": about}


async def search_store(
    pipeline: Pipeline, name: str, body: bytes, caller: Caller, files: Files | None = None, blank: Record | None = None
) -> dict[str, Any]:
    """Return a page of OpenAI's vector store search, in which `files` are named as they were handed in; raises EkibenError."""
    asked = parse(VectorStoreSearchRequest, body)
    request = SearchRequest(model=store(pipeline, name, caller).name, query=asked.query, top_k=asked.max_num_results)
    found = await _found(pipeline, request, pipeline.route(request, caller), blank)
    named = await asyncio.to_thread(_names, found, caller.tenant, files) if files else {}
    data = [
        {
            **named.get(passage.source, {"file_id": passage.source, "filename": passage.source}),
            "score": round(passage.score, 4),
            "attributes": {"page": passage.page, "heading": passage.heading},
            "content": [{"type": "text", "text": passage.text}],
        }
        for passage in found
    ]  # fmt: skip
    page = {"object": "vector_store.search_results.page", "search_query": [asked.query], "data": data}
    return {**page, "has_more": False, "next_page": None}


@dataclass(frozen=True)
class Desk:
    """Where documents of a collection are handed in, and by which roles."""

    uploads: Uploads
    writers: frozenset[str]


async def add(pipeline: Pipeline, desks: Mapping[str, Desk], body: bytes, caller: Caller) -> dict[str, Any]:
    """Add documents to what a route answers from, for the caller's tenant; raises EkibenError, and then nothing was added."""
    request = parse(DocumentsRequest, body)
    route = _route(pipeline, request.model, caller)
    desk = desk_of(desks, route, caller)
    for document in request.documents:
        check_labels(document.labels, caller, "documents")
    uploads = [_upload(document, caller.tenant) for document in request.documents]
    if len({upload.id for upload in uploads}) < len(uploads):
        raise InvalidRequest("Two documents have the same id.", param="documents", code="invalid_value")
    access, asked = Access(caller.tenant, caller.roles), {upload.id for upload in uploads}
    for one in await asyncio.to_thread(desk.uploads.all):
        if one.tenant == caller.tenant and one.id in asked and not access.allows(one.tenant, frozenset(one.labels)):
            raise Forbidden(f"There is a document {one.id!r} that you may not replace.", param="documents")
    change = await changed(desk.uploads.put, uploads)
    became = {
        **dict.fromkeys(change.added, "added"), **dict.fromkeys(change.replaced, "replaced"),
        **dict.fromkeys(change.unchanged, "unchanged"), **dict.fromkeys(change.refused, "refused"),
    }  # fmt: skip
    log.info(
        "documents added", route=route.name, tenant=caller.tenant, roles=sorted(caller.roles),
        **{name: sorted(one for one, status in became.items() if status == name) for name in sorted(set(became.values()))},
    )  # fmt: skip
    data = [
        {"id": one.id, "object": "document", "status": became[one.id], "reason": change.refused.get(one.id)} for one in uploads
    ]
    return {"object": "list", "model": route.name, "data": data}


async def listed(pipeline: Pipeline, desks: Mapping[str, Desk], name: str, caller: Caller) -> dict[str, Any]:
    """Return the documents that a route answers from, as far as the caller may find them; raises EkibenError."""
    route = _route(pipeline, name, caller)
    access = Access(caller.tenant, caller.roles)
    found = await asyncio.to_thread(pipeline.collections[route.collection or ""].documents, access)
    desk = desks.get(route.collection or "")
    added = {upload.source: upload for upload in await asyncio.to_thread(desk.uploads.all)} if desk else {}
    data = [
        {
            "id": added[source].id if source in added else source, "object": "document", "source": source,
            "title": added[source].title if source in added else "", "labels": told["labels"], "chunks": told["chunks"],
            "uploaded": source in added,
        }
        for source, told in sorted(found.items())
    ]  # fmt: skip
    return {"object": "list", "model": route.name, "data": data}


async def remove(pipeline: Pipeline, desks: Mapping[str, Desk], name: str, identity: str, caller: Caller) -> dict[str, Any]:
    """Remove a document that the caller's tenant has added and that he may find; raises EkibenError."""
    route = _route(pipeline, name, caller)
    desk = desk_of(desks, route, caller)
    access = Access(caller.tenant, caller.roles)
    mine = next(
        (one for one in await asyncio.to_thread(desk.uploads.all) if (one.tenant, one.id) == (caller.tenant, identity)), None
    )
    if mine is None or not access.allows(mine.tenant, frozenset(mine.labels)):
        raise UnknownDocument(f"You have no document {identity[:128]!r}.")
    await changed(desk.uploads.remove, caller.tenant, identity)
    log.info("document deleted", route=route.name, tenant=caller.tenant, roles=sorted(caller.roles), document=identity)
    return {"id": identity, "object": "document.deleted", "deleted": True}


# Apart from the threads in which guards look: a change may wait a minute for another.
_CHANGES = ThreadPoolExecutor(2, thread_name_prefix="documents")
_Result = TypeVar("_Result")


async def changed(function: Callable[..., _Result], *args: object) -> _Result:
    """Change the documents of a desk; raises EkibenError, and then all is as before."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_CHANGES, partial(function, *args))
    except UnusableIndex:
        message = "Nothing of the documents may be in the index, by the collection's policy."
        raise InvalidRequest(message, param="documents") from None
    except UploadsBusy as error:
        raise Unavailable(f"The documents cannot be changed now: {error}.") from error
    except Exception as error:
        raise RetrievalUnavailable("The documents could not be indexed, and nothing was changed; try again.") from error


def check_labels(labels: Iterable[str], caller: Caller, param: str) -> None:
    """Raise Forbidden where a caller gives labels that are not his roles."""
    if foreign := sorted(set(labels) - caller.roles):
        raise Forbidden(f"You cannot give the label {foreign[0]!r}: it is none of your roles.", param=param)


def stores(pipeline: Pipeline, caller: Caller) -> list[Route]:
    """Return the routes that have documents and that the caller may use, by name."""
    return [route for _, route in sorted(pipeline.routes.all.items()) if route.collection and route.open_to(caller)]


def store(pipeline: Pipeline, name: str, caller: Caller) -> Route:
    """Return the route of that name; raises UnknownModel unless it has documents, and Forbidden."""
    route = pipeline.routes.all.get(name)
    if route is not None and route.collection:
        check_open(route, caller)
        return route
    raise UnknownModel(f"The vector store {name[:100]!r} does not exist.", param="vector_store_id")


def _route(pipeline: Pipeline, name: str, caller: Caller) -> Route:
    """Return the route of that name; raises UnknownModel unless it has documents, and Forbidden."""
    try:
        return store(pipeline, name, caller)
    except UnknownModel:
        known = ", ".join(route.name for route in stores(pipeline, caller)) or "none"
        message = f"The model {name[:100]!r} does not exist, or has no documents; there is: {known}"
        raise UnknownModel(message, param="model") from None


def card(route: Route, created: int) -> dict[str, Any]:
    """Return OpenAI's description of a vector store; `created` is in seconds since 1970."""
    return {
        "id": route.name, "object": "vector_store", "created_at": created, "name": route.name, "status": "completed",
        "description": route.description, "metadata": {"collection": route.collection, "index": route.index},
    }  # fmt: skip


def desk_of(desks: Mapping[str, Desk], route: Route, caller: Caller) -> Desk:
    """Return where documents of a route are handed in; raises InvalidRequest and Forbidden."""
    desk = desks.get(route.collection or "")
    if desk is None:
        raise InvalidRequest(f"The documents of {route.name!r} come with the box; it takes no others.", param="model")
    if caller.roles.isdisjoint(desk.writers):
        raise Forbidden(
            f"Adding and deleting documents of {route.name!r} needs one of the roles {', '.join(sorted(desk.writers))}."
        )
    return desk


def _upload(document: NewDocument, tenant: str) -> Upload:
    labels = tuple(sorted(set(document.labels)))
    return Upload(document.id, tenant, document.text, document.title, labels, document.language, document.date)


async def _found(pipeline: Pipeline, request: SearchRequest, route: Route, blank: Record | None) -> list[Passage]:
    found = await pipeline.search(request, route, blank)
    # Who found which documents, for the audit; never what was asked or read.
    log.info(
        "documents searched", route=route.name, index=route.index, tenant=route.caller.tenant, roles=sorted(route.caller.roles),
        sources=sorted({passage.source for passage in found}),
    )  # fmt: skip
    return found


def _names(found: list[Passage], tenant: str, files: Files) -> dict[str, dict[str, str]]:
    """Return id and name of the file of each source that is one."""
    ids = {passage.source: passage.source.rpartition("#")[2] for passage in found if passage.source.startswith("uploads/")}
    told = {source: files.get(tenant, identity) for source, identity in ids.items()}
    return {source: {"file_id": file.id, "filename": file.name} for source, file in told.items() if file}


def _told(passage: Passage) -> dict[str, Any]:
    return {
        "source": passage.source, "page": passage.page or None, "heading": passage.heading or None,
        "score": round(passage.score, 4), "text": passage.text,
    }  # fmt: skip
