"""`ekiben bento`: the Bento."""

from __future__ import annotations

import subprocess
import sys

import typer

from services.cli.console import load, out, reported

app = typer.Typer(help="The Bento.", no_args_is_help=True)


@app.command("version")
def bento_version() -> None:
    """Print the version of the Bento that this folder makes: a function of the files that are packed."""
    from services.bento import version_here

    with reported():
        sys.stdout.write(version_here() + "\n")


@app.command("build")
def bento_build() -> None:
    """Build the Bento with its deterministic version: `bentoml build --version "$(ekiben bento version)"`.

    The same files give the same version, so a Bento that is there already is left alone.
    """
    from services.bento import version_here
    from services.store import has_bento

    with reported():
        version = version_here()
        tag = f"{load(None).bundle.name}:{version}"
    if has_bento(tag):
        out.print(f"{tag} is in the store", markup=False)
        return
    command = [sys.executable, "-m", "bentoml", "build", "--version", version]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603  no shell
