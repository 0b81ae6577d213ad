"""`ekiben rag`: documents: ingest a collection, search it, measure search and answers, its index's versions, and where it is."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table

from services.bundle import SERVERS, secret_in
from services.caller import DEFAULT_TENANT
from services.cli import answers
from services.cli.console import Bar, BundleOption, JsonOption, Pace, err, fail, load, out, reported, write_lock
from services.settings import load_settings

if TYPE_CHECKING:
    from rag.evaluate import Evaluation
    from services.bundle import Collection, LoadedBundle

CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection in bundle.yaml.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="As `ekiben rag versions` prints it.")]
app = typer.Typer(
    help="Documents: ingest a collection, search it, measure that, keep its versions, move it.", no_args_is_help=True
)
app.add_typer(answers.app)


@app.command("ingest")
def rag_ingest(
    collection: Annotated[str, typer.Argument(help="Name of the collection in bundle.yaml.")],
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Read a collection's documents into an index in the model store, and note it in bundle.lock.

    A collection with a server (`store`) gets a version there, and is searched in it from the next search on.

    Only what is new or changed is read and embedded. Prints what became of every document.
    """
    loaded = load(bundle)
    _known_collection(loaded, collection)
    from services.lock import read_lock
    from services.packing import ingest

    path = _lock_file(bundle)
    with reported(), Bar() as bar:
        tag, report = ingest(loaded, collection, bar)
        if path.is_file() and not loaded.bundle.collections[collection].store:
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
    _known_collection(loaded, collection, indexed=False)
    from rag.access import Access
    from rag.embedding import MultilingualE5
    from services.indexes import open_collection
    from services.lock import read_lock

    everything = tenant is None and not label
    access = None if everything else Access(tenant or DEFAULT_TENANT, frozenset(label or ()))
    with reported():
        lock = read_lock(_lock_file(bundle))
        opened = open_collection(loaded, collection, lock, MultilingualE5())
        with closing(opened):
            context = opened.fit(asyncio.run(opened.search(question, access)), question)
    if as_json:
        sys.stdout.write(json.dumps(context.sources(), ensure_ascii=False) + "\n")
        return
    for source in context.sources():
        where = source["source"] + (f", page {source['page']}" if source["page"] else "")
        out.print(f"({source['number']}) {source['score']:.3f} {where} {source['heading'] or ''}", markup=False, style="bold")
        out.print(source["excerpt"], markup=False)


@app.command("versions")
def rag_versions(collection: CollectionName, bundle: BundleOption = None, as_json: JsonOption = False) -> None:  # noqa: FBT002
    """List the versions of a collection's index, oldest first, and which one is searched."""
    loaded = load(bundle, folders=False)
    _known_collection(loaded, collection)
    from services.indexes import versions_of
    from services.lock import read_lock

    with reported():
        found = versions_of(loaded, collection, read_lock(_lock_file(bundle)))
    if as_json:
        sys.stdout.write(json.dumps([asdict(version) for version in found]) + "\n")
        return
    table = Table("version", "made", "chunks", "searched", box=None, pad_edge=False)
    for version in found:
        table.add_row(version.name, version.made, str(version.chunks), "yes" if version.current else "-")
    out.print(table)


@app.command("switch")
def rag_switch(collection: CollectionName, version: VersionName, bundle: BundleOption = None) -> None:
    """Search a collection in another version, an earlier one too.

    On a server it holds from the next search on, in every box; in the model store it is noted in bundle.lock, which a box
    reads when it starts. `ekiben rag ingest` and `ekiben pack` go back to the documents as they are.
    """
    loaded = load(bundle, folders=False)
    _known_collection(loaded, collection)
    from services.indexes import switch
    from services.lock import read_lock

    with reported():
        before = read_lock(_lock_file(bundle))
        lock = switch(loaded, collection, version, before)
    if lock != before:
        write_lock(lock, bundle)
    out.print(f"{collection} is searched in {version}", markup=False)


@app.command("remove")
def rag_remove(collection: CollectionName, version: VersionName, bundle: BundleOption = None) -> None:
    """Remove a version of a collection's index; refused while it is the one that is searched."""
    loaded = load(bundle, folders=False)
    _known_collection(loaded, collection)
    from services.indexes import remove
    from services.lock import read_lock

    with reported():
        remove(loaded, collection, version, read_lock(_lock_file(bundle)))
    out.print(f"removed {version}", markup=False)


@app.command("move")
def rag_move(
    collection: CollectionName,
    to: Annotated[str, typer.Option("--to", help="The server's URL as it would stand in bundle.yaml, or embedded.")],
    bundle: BundleOption = None,
) -> None:
    """Copy the version that is searched to a server, or from there into the model store, without embedding anything again.

    What arrives is compared with what was sent, and is not used unless it is the same. What was copied from stays.
    """
    loaded = load(bundle, folders=False)
    _known_collection(loaded, collection)
    from services.indexes import EMBEDDED, move
    from services.lock import read_lock

    if to != EMBEDDED and not to.startswith(SERVERS):
        fail(f"--to is {EMBEDDED}, or a URL that begins with {', '.join(SERVERS)}")
    if problem := secret_in(to):
        fail(problem)
    with reported(), Bar() as bar:
        bar.step(f"collection {collection}: to {to}")
        before = read_lock(_lock_file(bundle))
        lock = move(loaded, collection, to, before, bar.advance)
    if lock != before:
        write_lock(lock, bundle)
    line = "take `store` out of the collection" if to == EMBEDDED else f"write `store: {to}` into the collection"
    out.print(f"copied and compared; now {line} in bundle.yaml", markup=False)


def _lock_file(bundle: Path | None) -> Path:
    return (bundle or load_settings().bundle).with_suffix(".lock")


@app.command("eval")
def rag_eval(  # noqa: PLR0913  an evaluation has many settings
    corpus: Annotated[Path, typer.Option(help="Documents, a line each: {_id, title, text}; .jsonl or .jsonl.gz.")],
    queries: Annotated[Path, typer.Option(help="Queries, a line each: {_id, text}; .jsonl or .jsonl.gz.")],
    qrels: Annotated[Path, typer.Option(help="Judgements, TSV: query-id, corpus-id, score and maybe split.")],
    split: Annotated[str | None, typer.Option(help="Judge the queries of this split only.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A collection's setting, as in bundle.yaml: dense_weight=0.5. May be repeated."),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Also measure with these settings: dense_weight=0.5,rerank=none. May be repeated."),
    ] = None,
    chunk_characters: Annotated[
        int, typer.Option(min=100, max=8000, help="Longest chunk; what is longer is cut, and its best chunk counts.")
    ] = 4000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that embed (default: the usable cores).")] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Measure how well documents are found: by words, by vectors, and as a route searches.

    nDCG@10, recall@5, recall@20 and MRR@10 over the queries that have judgements, by language, with 95% intervals of the
    differences, and the latency of a query. Texts are embedded once: their vectors are kept in EKIBEN_CACHE_DIR.
    """
    from rag.evaluate import PooledEmbeddings, evaluate
    from rag.judgements import read_judged
    from services.engine import usable_cores

    systems = {
        "hybrid": _searched(settings or []),
        **{text: _searched([*(settings or []), *text.split(",")]) for text in others or []},
    }
    with reported(), Bar() as bar, PooledEmbeddings(workers or usable_cores()) as embeddings:
        bar.step("reading")
        judged, cache = read_judged(corpus, queries, qrels, split), load_settings().cache_dir / "vectors"
        evaluation = evaluate(
            judged, systems, embeddings=embeddings, cache=cache, chunk_characters=chunk_characters, progress=Pace(bar).tell
        )
    _show(evaluation)
    if as_json:
        sys.stdout.write(json.dumps(evaluation.report(), ensure_ascii=False) + "\n")


def _searched(assignments: list[str]) -> dict[str, object]:
    """Return a collection's settings of search, with some set to other values; ends with an error where one is none."""
    from services.bundle import SEARCHED, Collection

    given: dict[str, object] = {}
    for text in assignments:
        key, equals, value = text.strip().partition("=")
        if key not in SEARCHED or not equals:
            fail(f"{text!r} is not KEY=VALUE with a KEY of {', '.join(SEARCHED)}")
        given[key] = yaml.safe_load(value)
    try:
        entry = Collection.model_validate({"path": ".", **given})
    except ValidationError as error:
        fail("; ".join(f"{'.'.join(map(str, told['loc']))}: {told['msg']}" for told in error.errors()))
    return {"dense_weight": entry.dense_weight, "ranking": {"rerank": entry.rerank, "mmr": entry.mmr}}


def _show(evaluation: Evaluation) -> None:
    from rag.metrics import METRICS

    report = evaluation.report()
    err.print(f"{report['queries']} queries, {report['documents']} documents, {report['chunks']} chunks", markup=False)
    for name, why in report["refused"].items():
        err.print(f"not searched: {name}: {why}", markup=False)
    table = Table("system", "language", "queries", *METRICS, box=None, pad_edge=False)
    for system, figures in report["by_system"].items():
        rows = [("all", {**figures, "queries": report["queries"]}), *figures["by_language"].items()]
        for language, of in rows if len(rows) > 2 else rows[:1]:  # noqa: PLR2004  one language is all
            table.add_row(system, language, str(of["queries"]), *(f"{of[metric]:.4f}" for metric in METRICS))
    err.print(table)
    for pair, by_metric in report["comparisons"].items():
        told = by_metric["ndcg@10"]
        err.print(
            f"{pair}: nDCG@10 {told['mean']:+.4f}, 95% from {told['low']:+.4f} to {told['high']:+.4f}, p = {told['p']:.4f}",
            markup=False,
        )
    for stage, told in report["latency_ms"].items():
        err.print(f"{stage}: p50 {told['p50']:.1f} ms, p95 {told['p95']:.1f} ms", markup=False)


def _known_collection(loaded: LoadedBundle, name: str, *, indexed: bool = True) -> Collection:
    if name not in loaded.bundle.collections:
        fail(f"no collection named {name!r}; there is: {', '.join(loaded.bundle.collections) or 'none'}")
    found = loaded.bundle.collections[name]
    if indexed and found.retriever:
        fail(f"collection {name!r} is answered by its retriever, {found.retriever}; it has no index")
    return found
