"""The `ekiben` command. Heavy packages are imported by the commands that need them: `ekiben check` answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.bundle import BundleError, LoadedBundle, json_schema, load_bundle
from services.settings import load_settings

if TYPE_CHECKING:
    from services.bundle import Collection
    from services.lock import Lock

app = typer.Typer(help="Pack an LLM application into one versioned Bento.", no_args_is_help=True, pretty_exceptions_enable=False)
rag = typer.Typer(help="Documents: ingest a collection, search it.", no_args_is_help=True)
adapter = typer.Typer(help="LoRA adapters.", no_args_is_help=True)
guard = typer.Typer(help="Guards: try a policy on a text.", no_args_is_help=True)
prompt = typer.Typer(help="Prompts and their versions.", no_args_is_help=True)
model = typer.Typer(help="The base model.", no_args_is_help=True)
bento = typer.Typer(help="The Bento.", no_args_is_help=True)
for name, group in (("model", model), ("adapter", adapter), ("rag", rag), ("guard", guard), ("prompt", prompt), ("bento", bento)):
    app.add_typer(group, name=name)

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="The bundle file [default: bundle.yaml of this project].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def _fail(message: str) -> NoReturn:
    err.print("error", style="red", end=": ")
    err.print(message, markup=False)
    raise typer.Exit(1)


def _load(path: Path | None) -> LoadedBundle:
    try:
        return load_bundle(path or load_settings().bundle)
    except BundleError as error:
        for line in error.lines:
            err.print(line, markup=False, style="red")
        err.print(f"{len(error.lines)} problem{'s' if len(error.lines) > 1 else ''}; nothing was started.")
        raise typer.Exit(1) from error


@contextmanager
def _reported() -> Generator[None]:
    """Turn the errors of the parts into a message and a failing exit; anything else is a defect and keeps its trace."""
    from adapters.manifest import AdapterError
    from models.making import ModelError
    from models.source import SourceError
    from rag.index import UnusableIndex
    from services.lock import LockError

    try:
        yield
    except (AdapterError, ModelError, SourceError, UnusableIndex, LockError) as error:
        _fail(str(error))


class _Bar:
    """Progress on a terminal; plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True
        )
        self._task = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """Begin a step."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)
        if not err.is_terminal:
            err.print(text, markup=False)

    def advance(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False)


@app.command()
def check(bundle: BundleOption = None) -> None:
    """Check bundle.yaml and every file it names, and start nothing.

    Prints each problem with its file, line and remedy, and exits with 1 when there is one.
    """
    loaded = _load(bundle)
    content = loaded.bundle
    out.print(
        f"{content.name}: {content.model.name} ({content.model.quantization.recipe}) from {content.model.source}", markup=False
    )
    table = Table("route", "adapter", "prompt", "collection", "policy", box=None, pad_edge=False)
    for name, route in content.routes.items():
        table.add_row(name, route.adapter or "-", route.prompt, route.collection or "-", route.policy)
    out.print(table)
    out.print("[green]ok[/green]")


@app.command()
def schema() -> None:
    """Print the JSON schema of bundle.yaml, for editors."""
    sys.stdout.write(json_schema())


@app.command()
def pack(bundle: BundleOption = None) -> None:
    """Bring the model, the adapters and the indexes into the BentoML model store, and write bundle.lock.

    What is in the store already is left alone, so a second run takes a moment.
    """
    loaded = _load(bundle)
    from services.engine import find_device, missing_libraries
    from services.packing import pack as pack_bundle

    if message := missing_libraries(find_device(load_settings())):
        err.print(f"warning: {message}", markup=False)
    with _reported(), _Bar() as bar:
        lock = pack_bundle(loaded, bar)
    _write_lock(lock, bundle)


def _write_lock(lock: Lock, bundle: Path | None) -> None:
    path = (bundle or load_settings().bundle).with_suffix(".lock")
    lock.write(path)
    out.print(f"wrote {path.name}", markup=False)


@model.command("make")
def model_make(bundle: BundleOption = None) -> None:
    """Fetch, convert, quantize and check the base model, and register it in the model store."""
    loaded = _load(bundle)
    from services.packing import pack_model

    with _reported(), _Bar() as bar:
        out.print(pack_model(loaded, bar), markup=False)


@adapter.command("check")
def adapter_check(folder: Annotated[Path, typer.Argument(help="The adapter's folder.")], bundle: BundleOption = None) -> None:
    """Check that an adapter may be served on the bundle's base model."""
    from adapters.manifest import check_adapter

    content = _load(bundle).bundle
    with _reported():
        manifest = check_adapter(folder, base_source=content.model.source, max_lora_rank=content.engine.max_lora_rank)
    out.print(f"{manifest.name}: fits {content.model.source}", markup=False)


@rag.command("ingest")
def rag_ingest(
    collection: Annotated[str, typer.Argument(help="Name of the collection in bundle.yaml.")], bundle: BundleOption = None
) -> None:
    """Read a collection's folder (Markdown, text, HTML, PDF) into an index in the model store, and note it in bundle.lock."""
    loaded = _load(bundle)
    _known_collection(loaded, collection)
    from services.lock import read_lock
    from services.packing import pack_index

    path = (bundle or load_settings().bundle).with_suffix(".lock")
    with _reported(), _Bar() as bar:
        tag = pack_index(loaded, collection, bar)
        if path.is_file():
            lock = read_lock(path)
            lock = lock.model_copy(update={"indexes": {**lock.indexes, collection: tag}})
            _write_lock(lock, bundle)
    out.print(tag, markup=False)


@rag.command("search")
def rag_search(
    collection: Annotated[str, typer.Argument(help="Name of the collection in bundle.yaml.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Search a collection as a route would, and print the passages with their scores."""
    import asyncio

    loaded = _load(bundle)
    entry = _known_collection(loaded, collection)
    from rag.chain import Collection
    from rag.embedding import MultilingualE5
    from services.lock import read_lock
    from services.store import stored_path

    with _reported():
        lock = read_lock((bundle or load_settings().bundle).with_suffix(".lock"))
        opened = Collection(
            stored_path(lock.indexes[collection]), embedder=loaded.bundle.embedder.name, embeddings=MultilingualE5(),
            top_k=entry.top_k, dense_weight=entry.dense_weight, min_score=entry.min_score,
            max_context_characters=entry.max_context_characters,
        )  # fmt: skip
        context = opened.fit(asyncio.run(opened.search(question)))
    if as_json:
        sys.stdout.write(json.dumps(context.sources(), ensure_ascii=False) + "\n")
        return
    for source in context.sources():
        where = source["source"] + (f", page {source['page']}" if source["page"] else "")
        out.print(f"({source['number']}) {source['score']:.3f} {where} {source['heading'] or ''}", markup=False, style="bold")
        out.print(source["excerpt"], markup=False)


def _known_collection(loaded: LoadedBundle, name: str) -> Collection:
    if name not in loaded.bundle.collections:
        _fail(f"no collection named {name!r}; there is: {', '.join(loaded.bundle.collections) or 'none'}")
    return loaded.bundle.collections[name]


@guard.command("scan")
def guard_scan(
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="Name of the policy in bundle.yaml.")] = "default",
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Show what a policy does to a user's text. Exits with 2 when the text is refused."""
    from guards.guard import Blocked, Guard

    loaded = _load(bundle)
    if policy not in loaded.policies:
        _fail(f"no policy named {policy!r}; there is: {', '.join(loaded.policies)}")
    content = sys.stdin.read() if text == "-" else text
    active = Guard(loaded.policies[policy])
    try:
        shown, refused = active.check_text(content), False
    except Blocked:
        shown, refused = "", True
    findings = [finding.as_dict() for finding in active.findings]
    if as_json:
        result = {"policy": active.policy.label, "refused": refused, "text": shown, "findings": findings}
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    else:
        for finding in findings:
            out.print(f"{finding['action']:>5}  {finding['detector']}  {finding['detail']} x{finding['count']}", markup=False)
        out.print("refused" if refused else shown, markup=False)
    if refused:
        raise typer.Exit(2)


@prompt.command("list")
def prompt_list(bundle: BundleOption = None, as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List the prompts, their versions, and the routes that use them."""
    loaded = _load(bundle)
    rows = [
        {"prompt": p.name, "version": p.version, "routes": [n for n, r in loaded.bundle.routes.items() if r.prompt == p.name]}
        for p in loaded.prompts.values()
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    table = Table("prompt", "version", "routes", box=None)
    for row in rows:
        table.add_row(str(row["prompt"]), str(row["version"]), ", ".join(row["routes"]))
    out.print(table)


@bento.command("version")
def bento_version() -> None:
    """Print the version of the Bento that this folder makes: a function of the files that are packed."""
    from services.bento import version_here

    with _reported():
        sys.stdout.write(version_here() + "\n")


@bento.command("build")
def bento_build() -> None:
    """Build the Bento with its deterministic version: `bentoml build --version "$(ekiben bento version)"`.

    The same files give the same version, so a Bento that is there already is left alone.
    """
    from services.bento import version_here
    from services.store import has_bento

    with _reported():
        version = version_here()
        tag = f"{_load(None).bundle.name}:{version}"
    if has_bento(tag):
        out.print(f"{tag} is in the store", markup=False)
        return
    command = [sys.executable, "-m", "bentoml", "build", "--version", version]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603  no shell


if __name__ == "__main__":
    app()
