"""`ekiben rag`: documents: ingest a collection, search it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.caller import DEFAULT_TENANT
from services.cli.console import Bar, BundleOption, JsonOption, err, fail, load, out, reported, write_lock
from services.settings import load_settings

if TYPE_CHECKING:
    from services.bundle import Collection, LoadedBundle

app = typer.Typer(help="Documents: ingest a collection, search it.", no_args_is_help=True)


@app.command("ingest")
def rag_ingest(
    collection: Annotated[str, typer.Argument(help="Name of the collection in bundle.yaml.")],
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Read a collection's documents into an index in the model store, and note it in bundle.lock.

    Only what is new or changed is read and embedded. Prints what became of every document.
    """
    loaded = load(bundle)
    _known_collection(loaded, collection)
    from services.lock import read_lock
    from services.packing import ingest

    path = (bundle or load_settings().bundle).with_suffix(".lock")
    with reported(), Bar() as bar:
        tag, report = ingest(loaded, collection, bar)
        if path.is_file():
            lock = read_lock(path)
            lock = lock.model_copy(update={"indexes": {**lock.indexes, collection: tag}})
            lock.write(path) if as_json else write_lock(lock, bundle)
    if as_json:
        sys.stdout.write(json.dumps({"tag": tag, "collection": collection, **report.as_dict()}, ensure_ascii=False) + "\n")
        return
    for line in report.lines():
        err.print(line, markup=False)
    out.print(tag, markup=False)


@app.command("search")
def rag_search(
    collection: Annotated[str, typer.Argument(help="Name of the collection in bundle.yaml.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Search as this tenant's caller.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Search as a caller with this role; repeat it.")] = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Search a collection as a route would, and print the passages with their scores.

    Without --tenant and --label everything is found, whoever may see it.
    """
    import asyncio

    loaded = load(bundle)
    entry = _known_collection(loaded, collection)
    from rag.access import Access
    from rag.collection import Collection
    from rag.embedding import MultilingualE5
    from services.lock import read_lock
    from services.store import stored_path

    everything = tenant is None and not label
    access = None if everything else Access(tenant or DEFAULT_TENANT, frozenset(label or ()))
    with reported():
        lock = read_lock((bundle or load_settings().bundle).with_suffix(".lock"))
        opened = Collection(
            stored_path(lock.indexes[collection]), embedder=loaded.bundle.embedder.name, embeddings=MultilingualE5(),
            top_k=entry.top_k, dense_weight=entry.dense_weight, min_score=entry.min_score,
            max_context_characters=entry.max_context_characters,
        )  # fmt: skip
        context = opened.fit(asyncio.run(opened.search(question, access)))
    if as_json:
        sys.stdout.write(json.dumps(context.sources(), ensure_ascii=False) + "\n")
        return
    for source in context.sources():
        where = source["source"] + (f", page {source['page']}" if source["page"] else "")
        out.print(f"({source['number']}) {source['score']:.3f} {where} {source['heading'] or ''}", markup=False, style="bold")
        out.print(source["excerpt"], markup=False)


def _known_collection(loaded: LoadedBundle, name: str) -> Collection:
    if name not in loaded.bundle.collections:
        fail(f"no collection named {name!r}; there is: {', '.join(loaded.bundle.collections) or 'none'}")
    return loaded.bundle.collections[name]
