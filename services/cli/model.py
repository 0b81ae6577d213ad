"""`ekiben model`: the base model."""

from __future__ import annotations

import typer

from services.cli.console import Bar, BundleOption, load, out, reported

app = typer.Typer(help="The base model.", no_args_is_help=True)


@app.command("make")
def model_make(bundle: BundleOption = None) -> None:
    """Fetch, convert, quantize and check the base model, and register it in the model store."""
    loaded = load(bundle)
    from services.packing import pack_model

    with reported(), Bar() as bar:
        out.print(pack_model(loaded, bar), markup=False)
