"""`ekiben prompt`: prompts and their versions."""

from __future__ import annotations

import json
import sys

import typer
from rich.table import Table

from services.cli.console import BundleOption, JsonOption, load, out

app = typer.Typer(help="Prompts and their versions.", no_args_is_help=True)


@app.command("list")
def prompt_list(bundle: BundleOption = None, as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List the prompts, their versions, and the routes that use them."""
    loaded = load(bundle)
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
