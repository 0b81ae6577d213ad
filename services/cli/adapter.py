"""`ekiben adapter`: loRA adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import BundleOption, load, out, reported

app = typer.Typer(help="LoRA adapters.", no_args_is_help=True)


app.add_typer(versions.app)


@app.command("check")
def adapter_check(folder: Annotated[Path, typer.Argument(help="The adapter's folder.")], bundle: BundleOption = None) -> None:
    """Check that an adapter may be served on the bundle's base model."""
    from adapters.manifest import check_adapter

    content = load(bundle).bundle
    with reported():
        manifest = check_adapter(folder, base_source=content.model.source, max_lora_rank=content.engine.max_lora_rank)
    out.print(f"{manifest.name}: fits {content.model.source}", markup=False)
