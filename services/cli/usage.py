"""`ekiben usage`: what was spent, by key, tenant, route, day and month."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from datetime import date
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from services.cli.console import JsonOption, csv_cell, err, fail, out
from services.settings import load_settings

_WIDEST = 1000


def usage(
    by: Annotated[
        str, typer.Option("--by", help="What to sum by, with commas: key, tenant, route, day, month.")
    ] = "month,tenant",
    since: Annotated[str | None, typer.Option(help="From this day on, of UTC: 2026-01-31; a month is its first day.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this day, with it; a month is its last day.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,  # noqa: FBT002  typer's way
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Print requests, tokens and cost, summed up from the database of all replicas (EKIBEN_DATABASE_URL).

    Cost is in the bundle's currency; JSON and CSV have it in micros, millionths of it, too. What was answered in the last quarter
    of a second may be missing.
    """
    from accounts.database import DatabaseUnavailable
    from accounts.prices import shown

    groups = [name.strip() for name in by.split(",") if name.strip()]
    try:
        first, last = since and _day(since, "01"), until and _day(until, "31")
    except ValueError:
        fail("--since and --until are days or months: 2026-01-31 or 2026-01")
    try:
        rows = asyncio.run(_rows(groups, first, last))
    except DatabaseUnavailable as error:
        fail(f"{error}; EKIBEN_DATABASE_URL names another")
    except ValueError as error:
        fail(str(error))
    for row in rows:
        row["cost"] = shown(row["micros"])
        if row.get("key"):
            row["key"] = f"ek_{row['key']}"  # as `ekiben keys list` has it
    if as_json:
        sys.stdout.write(json.dumps({"by": groups, "since": since, "until": until, "rows": rows}) + "\n")
    elif as_csv:
        writer = csv.DictWriter(
            sys.stdout, [*groups, "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "micros", "cost"]
        )
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    else:
        _show(groups, rows)


async def _rows(groups: list[str], since: str | None, until: str | None) -> list[dict[str, Any]]:
    from accounts.database import open_database
    from accounts.spend import usage as spent

    async with open_database(load_settings().database) as engine:
        return await spent(engine, groups, since=since, until=until)


def _day(text: str, of_month: str) -> str:
    """Return a day to compare days with; raises ValueError."""
    if len(text) == len("2026-01"):
        date.fromisoformat(f"{text}-01")
        return f"{text}-{of_month}"
    return date.fromisoformat(text).isoformat()


def _show(groups: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in groups:
        table.add_column(name, no_wrap=True)
    for name in ("requests", "prompt", "cached", "answers", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    from rich.text import Text

    for row in rows:
        told = (f"{row[name]:,}" for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens"))
        table.add_row(*(Text(str(row[name]) or "-") for name in groups), *told, row["cost"])
    # Wider than the terminal where it must be: an id or a sum that is cut is none.
    needed = Measurement.get(out, out.options.update(width=_WIDEST), table).maximum
    (out if needed <= out.width else Console(width=needed, highlight=False)).print(table)
    if not rows:
        err.print("nothing was spent in that time", markup=False)
