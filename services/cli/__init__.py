"""The `ekiben` command. Heavy packages are imported by the commands that need them: `ekiben check` answers at once."""

from __future__ import annotations

import sys

import typer
from rich.table import Table

from services.advice import advise
from services.bundle import json_schema, located
from services.cli import (
    activate,
    adapter,
    audit,
    bento,
    cache,
    containerize,
    database,
    deploy,
    engine,
    guard,
    keys,
    model,
    prompt,
    rag,
    release,
    route,
    snapshot,
    usage,
)  # fmt: skip
from services.cli.console import Bar, BundleOption, DeviceOption, err, fail, load, out, reported, target_of, write_lock
from services.settings import SettingsError, environment, load_settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
_GROUPS = {
    "model": model, "adapter": adapter, "rag": rag, "guard": guard, "prompt": prompt, "keys": keys, "audit": audit,
    "route": route, "cache": cache, "database": database, "bento": bento, "release": release, "engine": engine,
    "snapshot": snapshot, "deploy": deploy,
}  # fmt: skip
for name, group in _GROUPS.items():
    app.add_typer(group.app, name=name)


@app.callback()
def ekiben() -> None:
    """Pack an LLM application into one versioned Bento, and operate the box: keys, usage, audit."""
    try:
        load_settings()
    except SettingsError as error:
        fail(str(error))


@app.command()
def check(bundle: BundleOption = None, device: DeviceOption = None) -> None:
    """Check bundle.yaml and every file it names, and start nothing.

    Prints each problem with its file, line and remedy, and exits with 1 when there is one. Warnings, such as a ${VARIABLE} that
    is not set on this machine, do not make it fail. A bundle for a GPU server can be checked on a laptop: --device cuda.
    """
    loaded = load(bundle, device)
    settings = load_settings()
    for line in located(bundle or settings.bundle, advise(loaded.bundle, settings, environment)):
        err.print(f"warning: {line}", markup=False, style="yellow")
    content = loaded.bundle
    out.print(
        f"{content.name}: {content.model.name} ({content.model.quantization.recipe}) from {content.model.source}", markup=False
    )
    table = Table("route", "adapter", "prompt", "collection", "policy", box=None, pad_edge=False)
    for name, made in content.routes.items():
        table.add_row(name, ", ".join(made.shares()) or "-", made.prompt, made.collection or "-", made.policy)
    out.print(table)
    out.print("[green]ok[/green]")


@app.command()
def schema() -> None:
    """Print the JSON schema of bundle.yaml, for editors."""
    sys.stdout.write(json_schema())


@app.command()
def pack(bundle: BundleOption = None, device: DeviceOption = None) -> None:
    """Bring the model, the adapters and the indexes into the BentoML model store, and write bundle.lock.

    What is in the store already is left alone, so a second run takes a moment.
    """
    loaded = load(bundle, device)
    from services.engine import missing_libraries
    from services.packing import pack as pack_bundle

    if message := missing_libraries(target_of(device).device):
        err.print(f"warning: {message}", markup=False)
    with reported(), Bar() as bar:
        lock = pack_bundle(loaded, bar)
    write_lock(lock, bundle)


app.command("activate")(activate.activate)
app.command("usage")(usage.usage)
app.command("containerize")(containerize.image)
