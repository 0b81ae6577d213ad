"""`ekiben keys`: API keys, made, listed, rotated and revoked in the database that the boxes ask."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from services.caller import DEFAULT_TENANT
from services.cli.console import JsonOption, err, fail, out, reported
from services.settings import load_settings

if TYPE_CHECKING:
    from accounts.keys import KeyStore, Made

app = typer.Typer(
    help="API keys, in the database of EKIBEN_DATABASE_URL (default: ekiben.db in EKIBEN_STATE_DIR).", no_args_is_help=True
)
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_MOST_SECONDS = 100 * 366 * 86_400
Identity = Annotated[
    str, typer.Argument(help="The key's id, as `ekiben keys list` prints it: ek_ and 16 characters.", metavar="ID")
]
Expires = Annotated[str | None, typer.Option(help="After this time it is refused: 90s, 30m, 12h, 30d or 4w.", metavar="TIME")]

Done = TypeVar("Done")


@app.command("create")
def keys_create(  # noqa: PLR0913  a key has many settings
    name: Annotated[str, typer.Option(help="What it is for, such as the application's name.")],
    owner: Annotated[str, typer.Option(help="Who answers for it: a person or a team.")],
    tenant: Annotated[str, typer.Option(help="Whose documents, policies and budgets its requests fall under.")] = DEFAULT_TENANT,
    role: Annotated[list[str] | None, typer.Option(help="A role of its requests; `ekiben-admin` is for the admin API.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="A public model name it may use (default: all).")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="An adapter that may answer it (default: all).")] = None,
    expires: Expires = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Most tokens a minute, of prompts and answers.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most requests at once.")] = None,
    budget_day: Annotated[float | None, typer.Option(min=0, help="Most it may cost a day, in the bundle's currency.")] = None,
    budget_month: Annotated[float | None, typer.Option(min=0, help="Most it may cost a calendar month.")] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Make a key and print its secret, this once: only its hash is kept.

    --role, --route and --adapter may be given several times. The secret alone is on standard output, for a pipe into a
    secret store; clients send it as Authorization: Bearer SECRET.
    """
    from pydantic import ValidationError

    from accounts.keys import NewKey

    try:
        new = NewKey(
            name=name, owner=owner, tenant=tenant, roles=frozenset(role or ()), routes=frozenset(route or ()),
            adapters=frozenset(adapter or ()), expires_at=_later(expires), requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute, concurrency=concurrency, budget_day=budget_day, budget_month=budget_month,
        )  # fmt: skip
    except ValidationError as error:
        first: Any = error.errors()[0]
        option = str(first["loc"][0]).removesuffix("s") if first["loc"][0] in {"roles", "routes", "adapters"} else first["loc"][0]
        fail(f"--{str(option).replace('_', '-')}: {first['msg']}")
    _hand_over(_stored(lambda keys: keys.create(new)), as_json=as_json)


@app.command("list")
def keys_list(as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List the keys, those that ended too, and never a secret."""
    now = time.time()
    rows = [key.told(now) for key in _stored(lambda keys: keys.list())]
    if as_json:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    if not rows:
        err.print("there are no keys yet; `ekiben keys create --help` tells how to make one", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=len("ek_") + 16)
    table.add_column("status", no_wrap=True)
    for head in ("name", "tenant", "owner and terms"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, [row["id"], row["status"], row["name"], row["tenant"], "\n".join(_terms(row))]))
    out.print(table)


@app.command("rotate")
def keys_rotate(
    identity: Identity,
    grace: Annotated[str, typer.Option(help="How long the secret before stays good: 0s, or such as 1h.", metavar="TIME")] = "0s",
    expires: Expires = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Give a key another secret and print it, this once; id, tenant, limits and what was spent stay.

    The secret before ends at once (within 5 seconds on boxes that know it), or after --grace. Of several rotations, the last two
    secrets are good at most.
    """
    expires_at, seconds = _later(expires), _seconds("--grace", grace)
    _hand_over(_stored(lambda keys: keys.rotate(identity, grace_seconds=seconds, expires_at=expires_at)), as_json=as_json)


@app.command("revoke")
def keys_revoke(identity: Identity, as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """End a key for good; every box refuses it within 5 seconds."""
    told = _stored(lambda keys: keys.revoke(identity)).told(time.time())
    if as_json:
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        return
    out.print(f"revoked {told['id']} ({told['name']})", markup=False)


def _stored(work: Callable[[KeyStore], Awaitable[Done]]) -> Done:
    """Do something with the keys in the database, or say why not and end with 1."""
    from accounts.database import DatabaseUnavailable, open_database
    from accounts.keys import KeyEnded, KeyStore, NoSuchKey

    async def opened() -> Done:
        async with open_database(load_settings().database) as engine:
            return await work(KeyStore(engine))

    with reported():
        try:
            return asyncio.run(opened())
        except DatabaseUnavailable as error:
            fail(f"{error}; EKIBEN_DATABASE_URL names another")
        except NoSuchKey as error:
            fail(f"{error}; `ekiben keys list` prints them")
        except KeyEnded as error:
            fail(str(error))
        except ValueError as error:
            fail(f"EKIBEN_DATABASE_URL: {error}")


def _hand_over(made: Made, *, as_json: bool) -> None:
    key = made.key
    if as_json:
        sys.stdout.write(json.dumps({**key.told(time.time()), "secret": made.secret}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(made.secret + "\n")
    err.print(f"{key.prefix} ({key.name}): keep this secret now, it cannot be shown again.", markup=False)


def _seconds(option: str, text: str) -> float:
    form = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if form is None or (seconds := int(form[1]) * _UNITS[form[2]]) > _MOST_SECONDS:
        fail(f"{option}: {text[:20]!r} is no time up to 100 years; write such as 90s, 30m, 12h, 30d or 4w")
    return float(seconds)


def _later(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = _seconds("--expires", text)
    if seconds == 0:
        fail("--expires: such a key would be good for nothing; leave it out for a key that does not expire")
    return time.time() + seconds


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6f}".rstrip("0").rstrip(".")


def _date(seconds: float) -> str:
    from accounts.keys import YEAR_10000

    if seconds >= YEAR_10000:
        return "after the year 9999"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def _terms(row: dict[str, Any]) -> list[str]:
    """Return what is to be said of a key, a line each; what it does not restrict is left out."""
    lines = [row["owner"]]
    lines += [f"{what}: {', '.join(row[what])}" for what in ("roles", "routes", "adapters") if row[what]]
    lines += [limits] if (limits := _limits(row)) else []
    return [*lines, f"until {_date(row['expires_at'])}"] if row["expires_at"] is not None else lines


def _limits(row: dict[str, Any]) -> str:
    units = {
        "requests_per_minute": "req/min", "tokens_per_minute": "tok/min", "concurrency": "at once", "budget_day": "a day",
        "budget_month": "a month",
    }  # fmt: skip
    return ", ".join(f"{_number(row[name])} {unit}" for name, unit in units.items() if row[name] is not None)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
