"""`ekiben database`: the schema of the database of keys and spend, looked at, brought forward and taken back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.console import JsonOption, agreed, err, fail, out
from services.settings import load_settings

if TYPE_CHECKING:
    from accounts.schema import Loss, Schema

app = typer.Typer(
    help="The schema of the database of EKIBEN_DATABASE_URL (default: ekiben.db in EKIBEN_STATE_DIR).", no_args_is_help=True
)
SqlOption = Annotated[bool, typer.Option("--sql", help="Print the SQL for whoever may run it, and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_T = TypeVar("_T")


@app.command("status")
def database_status(as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """Print which revision the schema is of, what this version would change, and whether this version may use it (else exit 1).

    Boxes make the schema of an empty database, and add to one of before; what older boxes would miss is taken away by
    `ekiben database upgrade` alone.
    """
    from accounts.schema import BASE, known

    missing = _missing()
    status = _on_schema(lambda schema: schema.status(), "sqlite://" if missing else None)
    about = {one.id: one.about for one in known()}
    if as_json:
        sys.stdout.write(json.dumps(status._asdict()) + "\n")
    else:
        none = f"none yet: there is no database at {missing}" if missing else "none yet: the database is empty"
        out.print(f"schema: {status.current or none}", markup=False)
        out.print(f"this version knows: {status.known}", markup=False)
        if status.oldest:
            out.print(f"may be used by versions that know: {status.oldest} or later", markup=False)
        for revision in status.pending:
            waits = " (waits for `ekiben database upgrade`)" if revision in status.contracts else ""
            out.print(f"pending: {revision}: {about[revision]}{waits}", markup=False)
        if not status.usable:
            err.print(f"this version cannot use it; serve one that knows {status.oldest or BASE} or later", markup=False)
    if not status.usable:
        raise typer.Exit(1)


@app.command("upgrade")
def database_upgrade(
    to: Annotated[str | None, typer.Option(help="Up to this revision (default: the newest).", metavar="REVISION")] = None,
    sql: SqlOption = False,  # noqa: FBT002  typer's way
    yes: YesOption = False,  # noqa: FBT002
) -> None:
    """Bring the schema forward, also by revisions after which older boxes fail: those it names, and asks before."""
    from accounts.schema import BASE, statements

    status = _on_schema(lambda schema: schema.status())
    target = _named(to or status.known)
    if sql:
        if target == status.current:
            err.print(f"the schema is {target} already", markup=False)
            return
        if target not in status.pending:
            fail(f"the schema is {status.current or 'none yet'}; nothing lies between it and {target}")
        sys.stdout.write(statements(_dialect(), status.current or BASE, target))
        return
    ending = [one for one in status.contracts if one <= target]
    if ending and not agreed(
        f"after {', '.join(ending)}, boxes of versions that do not know it fail; is none of them serving?", yes=yes
    ):
        fail("nothing was changed")
    _on_schema(lambda schema: schema.upgrade(target))
    out.print(f"schema: {target}", markup=False)


@app.command("downgrade")
def database_downgrade(
    to: Annotated[str, typer.Option(help="Back to this revision, such as 0001, or `base`: no tables.", metavar="REVISION")],
    sql: SqlOption = False,  # noqa: FBT002  typer's way
    yes: YesOption = False,  # noqa: FBT002
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Take the schema back, with what it will delete said before. Only where `ekiben release rollback` asks for it.

    Boxes of newer versions must not serve any more: they would fail, or expand the schema again. Copy the database first.
    """
    from accounts.schema import BASE, statements

    target = _named(to)
    status = _on_schema(lambda schema: schema.status())
    if target == status.current:
        err.print(f"the schema is {target} already", markup=False)
        if as_json:
            sys.stdout.write(json.dumps({"schema": target, "deleted": []}) + "\n")
        return
    losses = _on_schema(lambda schema: schema.lost(to))
    if sql:
        sys.stdout.write(statements(_dialect(), status.current or BASE, target))
        return
    for loss in losses:
        err.print(f"will be deleted: {_told(loss)}", markup=False, style="yellow")
    if not agreed(f"take the schema from {status.current} back to {target}?", yes=yes):
        fail("nothing was changed")
    _on_schema(lambda schema: schema.downgrade(to))
    if as_json:
        sys.stdout.write(json.dumps({"schema": target, "deleted": [loss._asdict() for loss in losses]}) + "\n")
    else:
        out.print(f"schema: {target}", markup=False)


def _named(name: str) -> str:
    from accounts.schema import BASE, Unfit, named

    try:
        found = named(name)
    except Unfit as error:
        fail(str(error))
    return found.id if found else BASE


def _told(loss: Loss) -> str:
    if loss.column is None:
        return f"table {loss.table} ({loss.rows} row{'' if loss.rows == 1 else 's'})"
    return f"column {loss.column} of {loss.table} (rows that hold something in it: {loss.rows})"


def _dialect() -> str:
    return load_settings().database.partition(":")[0]


def _missing() -> Path | None:
    """Return the file of the database where there is none yet: to look does not make it."""
    url = load_settings().database
    file = Path(url.removeprefix("sqlite:///").partition("?")[0])
    return file if url.startswith("sqlite:///") and not file.exists() else None


def _on_schema(what: Callable[[Schema], _T], url: str | None = None) -> _T:
    from accounts.database import DatabaseUnavailable, SchemaMismatch, connected, on_schema

    async def done() -> _T:
        async with connected(url or load_settings().database) as engine:
            return await on_schema(engine, what)

    try:
        return asyncio.run(done())
    except SchemaMismatch as error:
        fail(str(error))
    except DatabaseUnavailable as error:
        fail(f"{error}; EKIBEN_DATABASE_URL names another")
    except ValueError as error:
        fail(f"EKIBEN_DATABASE_URL: {error}")
