"""Documents of a loader from outside, LangChain's or one's own, as the lines of a JSONL file would have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.documents import Document

from rag.plugins import BadPlugin, load_plugin, make_plugin

_KEPT = ("title", "source", "date", "tenant", "labels", "language", "kind")


def loaded_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield what the loader `module:name` yields, in its order; raises BadPlugin, and then nothing of it is to be used.

    `name` is a LangChain `BaseLoader`, a class of one or a function that returns one, or a function that returns Documents.
    Of their metadata what a line may tell is kept. A document without an id that tells a `page` has the page for one: several
    have the same source.
    """
    for document in _given(path):
        if not isinstance(document, Document):
            raise BadPlugin(f"loader: {path!r} gave a {type(document).__name__}; it must give LangChain Documents")
        yield _row(document)


def _given(path: str) -> Iterator[Any]:
    found, given = load_plugin("loader", path), 0
    made = found if hasattr(found, "lazy_load") and not isinstance(found, type) else make_plugin("loader", path)
    try:
        for document in made.lazy_load() if hasattr(made, "lazy_load") else made:
            yield document
            given += 1
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise BadPlugin(f"loader: {path!r} failed after {given} documents: {told}; nothing of it was taken") from error


def _row(document: Document) -> dict[str, Any]:
    told = document.metadata
    row = {name: told[name] for name in _KEPT if told.get(name) is not None}
    labels = row.get("labels")
    if isinstance(labels, (tuple, set, frozenset)):
        row["labels"] = sorted(labels, key=str)
    identity = document.id or told.get("id")
    if identity is None and told.get("page") is not None:
        identity = f"page={told['page']}"
    return {**row, **({"id": str(identity)} if identity is not None else {}), "text": document.page_content}
