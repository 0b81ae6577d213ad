"""`ekiben snapshot`: a warmed engine on disk, which is up again in a second or two."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table

from services.cli.console import JsonOption, err, fail, out, reported
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from deploy.criu import Criu
    from deploy.snapshot import Manifest

app = typer.Typer(help="Snapshots of the warmed engine: up in a second or two.", no_args_is_help=True)
NameArgument = Annotated[
    str | None, typer.Argument(help="Which one (default: that of this box on this machine).", metavar="NAME")
]


@app.command("create")
def create(
    *,
    force: Annotated[bool, typer.Option("--force", help="Make it anew where there is one.")] = False,
    trial: Annotated[bool, typer.Option("--trial/--no-trial", help="Restore it once before it is kept.")] = True,
    json_: JsonOption = False,
) -> None:
    """Start the packed model's engine, ask it a few things, and write its memory to disk by CRIU.

    Needs root, a CPU engine, and criu (`make criu`). The snapshot is kept in EKIBEN_CACHE_DIR, for this user alone, and holds no
    key: none is read before it is restored. It can be restored on this machine, or on one with the same processor, kernel, box
    and criu; after a change of one of these make another. What is interrupted leaves nothing behind.
    """
    from services import snapshots

    settings = load_settings()
    signal.signal(signal.SIGTERM, _interrupted)
    with _told():
        criu = _criu(settings)
        name = snapshots.snapshot_name(settings, snapshots.facts_here(settings, criu))
        if not force and (settings.snapshots / name).exists():
            folder, manifest = snapshots.find(settings, criu)
            err.print(f"{name} is there: {folder}", markup=False)
        else:
            err.print("starting the engine, warming it, dumping it", markup=False)
            manifest = snapshots.create(settings, criu, trial=trial)
    if json_:
        out.print_json(data=_row(manifest))
    else:
        out.print(
            f"{manifest.name}: {manifest.bytes / 2**20:.0f} MB of an engine that took {manifest.start_seconds:.1f} s to start",
            markup=False,
        )


@app.command("restore")
def restore(
    name: NameArgument = None,
    *,
    or_start: Annotated[
        bool, typer.Option("--or-start/--or-fail", help="Where it cannot be restored: start the engine cold, or exit with 1.")
    ] = True,
) -> None:
    """Serve the engine from its snapshot, in the foreground; a cold start where that is not possible.

    Processor, kernel, criu, Python, packages, box and files are compared first, and every difference is logged. It listens on
    EKIBEN_ENGINE_HOST and EKIBEN_ENGINE_PORT and asks for EKIBEN_ENGINE_KEY, as `ekiben engine serve` does, which is also what
    the cold start is. SIGTERM ends the engine with all that it started, and the exit status is the engine's.

    `python -m services.restoring` is the same, up half a second sooner: what scale to zero runs as its --command.
    """
    from services import restoring

    try:
        status = restoring.serve(load_settings(), name, or_start=or_start)
    except restoring.REASONS as error:
        fail(str(error))
    raise typer.Exit(status)


@app.command("verify")
def verify(
    name: NameArgument = None,
    *,
    trial: Annotated[bool, typer.Option("--trial", help="Also restore it, on a free port, until it answers.")] = False,
    json_: JsonOption = False,
) -> None:
    """Check whether a snapshot can be restored here: what it depends on, and every byte of its files.

    Exits with 1 where it cannot, and says each reason. The files of one that is named are read without criu too.
    """
    from deploy.revival import RevivalFailed
    from services import snapshots

    settings = load_settings()
    with _told():
        criu, folder, manifest, problems = _judged(settings, name)
        if trial and criu and not problems:
            try:
                snapshots.try_out(criu, folder, manifest)
            except RevivalFailed as error:
                problems.append(str(error))
    if json_:
        sys.stdout.write(json.dumps({"name": manifest.name, "problems": problems}, indent=2) + "\n")
    else:
        for problem in problems:
            err.print(problem, markup=False, style="red")
    if problems:
        raise typer.Exit(1)
    if not json_:
        out.print(f"{manifest.name} can be restored here", markup=False)


@app.command("list")
def list_(*, json_: JsonOption = False) -> None:
    """List the snapshots, newest first."""
    from deploy.snapshot import read_all

    rows = [_row(manifest) for manifest in read_all(load_settings().snapshots)]
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    if not rows:
        err.print(_none(load_settings()), markup=False)
        return
    table = Table("name", "made", "MB", "cold start", "box", "kernel", box=None, pad_edge=False)
    for row in rows:
        size, start = f"{row['bytes'] / 2**20:.0f}", f"{row['start_seconds']:.1f} s"
        table.add_row(row["name"], row["made_at"][:16].replace("T", " "), size, start, row["box"], row["kernel"])
    out.print(table)


@app.command("remove")
def remove(
    names: Annotated[list[str] | None, typer.Argument(help="Which ones.", metavar="NAME...")] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Remove snapshots; an engine that was restored from one goes on."""
    from deploy import snapshot

    root = load_settings().snapshots
    there = {path.parent.name: path.parent for path in sorted(root.glob(f"*/{snapshot.MANIFEST}"))}
    if bool(names) == all_:
        fail("name the snapshots to remove, or say --all")
    if unknown := [name for name in names or () if name not in there]:
        fail(f"there is no snapshot {', '.join(unknown)} in {root}")
    snapshot.remove([there[name] for name in names or there])


def _judged(settings: Settings, name: str | None) -> tuple[Criu | None, Path, Manifest, list[str]]:
    """Return a snapshot with what keeps it from being restored here; without criu (None) that of one that is named."""
    from deploy.criu import CriuFailed
    from deploy.snapshot import altered, read
    from services import snapshots

    named = _named(settings, name)
    manifest = read(named) if named else None
    try:
        criu = _criu(settings)
        criu.check()
    except CriuFailed as error:
        if named is None or manifest is None:
            raise
        return None, named, manifest, [str(error), *altered(named, manifest)]
    here = snapshots.facts_here(settings, criu)
    folder = named or settings.snapshots / snapshots.snapshot_name(settings, here)
    if not folder.exists():
        folder, _ = snapshots.find(settings, criu)
    manifest = manifest or read(folder)
    return criu, folder, manifest, [*manifest.facts.differences(here), *altered(folder, manifest)]


def _named(settings: Settings, name: str | None) -> Path | None:
    """Return the folder of a snapshot that is named; ends with 1 where there is none at all."""
    from deploy.snapshot import MANIFEST

    if not any(settings.snapshots.glob(f"*/{MANIFEST}")):
        fail(_none(settings))
    return settings.snapshots / name if name else None


def _none(settings: Settings) -> str:
    return f"there is no snapshot in {settings.snapshots}: `ekiben snapshot create` makes one"


def _criu(settings: Settings) -> Criu:
    from deploy.criu import find_criu

    return find_criu(settings.criu)


def _row(manifest: Manifest) -> dict[str, Any]:
    facts = manifest.facts
    return {
        "name": manifest.name, "made_at": manifest.made_at.isoformat(), "bytes": manifest.bytes, "models": manifest.models,
        "start_seconds": round(manifest.start_seconds, 2), "box": facts.box, "cpu": facts.cpu, "kernel": facts.kernel,
        "criu": facts.criu,
    }  # fmt: skip


@contextmanager
def _told() -> Generator[None]:
    from deploy.criu import CriuFailed
    from deploy.revival import RevivalFailed
    from deploy.snapshot import SnapshotError
    from services.bundle import BundleError
    from services.engine import UnusableEngine

    try:
        with reported():
            yield
    except (CriuFailed, RevivalFailed, SnapshotError, BundleError, UnusableEngine) as error:
        fail(str(error))


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt
