"""Documents over HTTP: searching what a route answers from, in our form and in that of OpenAI's vector stores.

A vector store is a route with a collection, under the route's name: what a search shows has passed the route's guards, and is
what this caller may see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.errors import UnknownModel
from services.protocol import SearchRequest, VectorStoreSearchRequest, parse
from services.telemetry import log

if TYPE_CHECKING:
    from rag.context import Passage
    from services.caller import Caller
    from services.pipeline import Pipeline
    from services.routing import Route


async def search(pipeline: Pipeline, body: bytes, caller: Caller) -> dict[str, Any]:
    """Return the passages that a route's collection holds about a query, best first; raises EkibenError."""
    request = parse(SearchRequest, body)
    route = pipeline.route(request, caller)
    found = await _found(pipeline, request, route)
    data = [{"number": number, **_told(passage)} for number, passage in enumerate(found, start=1)]
    about = {name: version for name, version in route.versions().items() if version is not None}
    return {"object": "list", "model": route.name, "data": data, "ekiben": about}


async def search_store(pipeline: Pipeline, name: str, body: bytes, caller: Caller) -> dict[str, Any]:
    """Return a page of OpenAI's vector store search; raises EkibenError."""
    asked = parse(VectorStoreSearchRequest, body)
    request = SearchRequest(model=store(pipeline, name).name, query=asked.query, top_k=asked.max_num_results)
    found = await _found(pipeline, request, pipeline.route(request, caller))
    data = [
        {
            "file_id": passage.source, "filename": passage.source, "score": round(passage.score, 4),
            "attributes": {"page": passage.page, "heading": passage.heading},
            "content": [{"type": "text", "text": passage.text}],
        }
        for passage in found
    ]  # fmt: skip
    page = {"object": "vector_store.search_results.page", "search_query": [asked.query], "data": data}
    return {**page, "has_more": False, "next_page": None}


def stores(pipeline: Pipeline) -> list[Route]:
    """Return the routes that have documents, by name."""
    return [route for _, route in sorted(pipeline.routes.all.items()) if route.collection]


def store(pipeline: Pipeline, name: str) -> Route:
    """Return the route of that name; raises UnknownModel unless it has documents."""
    for route in stores(pipeline):
        if route.name == name:
            return route
    raise UnknownModel(f"The vector store {name[:100]!r} does not exist.", param="vector_store_id")


def card(route: Route, created: int) -> dict[str, Any]:
    """Return OpenAI's description of a vector store; `created` is in seconds since 1970."""
    return {
        "id": route.name, "object": "vector_store", "created_at": created, "name": route.name, "status": "completed",
        "description": route.description, "metadata": {"collection": route.collection, "index": route.index},
    }  # fmt: skip


async def _found(pipeline: Pipeline, request: SearchRequest, route: Route) -> list[Passage]:
    found = await pipeline.search(request, route)
    # Who found which documents, for the audit; never what was asked or read.
    log.info(
        "documents searched", route=route.name, index=route.index, tenant=route.caller.tenant, roles=sorted(route.caller.roles),
        sources=sorted({passage.source for passage in found}),
    )  # fmt: skip
    return found


def _told(passage: Passage) -> dict[str, Any]:
    return {
        "source": passage.source, "page": passage.page or None, "heading": passage.heading or None,
        "score": round(passage.score, 4), "text": passage.text,
    }  # fmt: skip
