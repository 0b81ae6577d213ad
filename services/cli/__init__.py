"""The `ekiben` command. Heavy packages are imported by the commands that need them: `ekiben check` answers at once."""

from __future__ import annotations

import sys

import typer
from rich.table import Table

from services.bundle import json_schema
from services.cli import adapter, audit, bento, cache, guard, keys, model, prompt, rag, route, usage
from services.cli.console import Bar, BundleOption, DeviceOption, err, load, out, reported, target_of, write_lock

app = typer.Typer(help="Pack an LLM application into one versioned Bento.", no_args_is_help=True, pretty_exceptions_enable=False)
_GROUPS = {
    "model": model, "adapter": adapter, "rag": rag, "guard": guard, "prompt": prompt, "route": route, "cache": cache,
    "keys": keys, "audit": audit, "bento": bento,
}  # fmt: skip
for name, group in _GROUPS.items():
    app.add_typer(group.app, name=name)


app.command("usage")(usage.usage)


@app.command()
def check(bundle: BundleOption = None, device: DeviceOption = None) -> None:
    """Check bundle.yaml and every file it names, and start nothing.

    Prints each problem with its file, line and remedy, and exits with 1 when there is one. A bundle for a GPU server can be
    checked on a laptop: --device cuda.
    """
    loaded = load(bundle, device)
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
