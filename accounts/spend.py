"""Spend in the database: sums by day, tenant, key and route; batches that count once however often they are sent; reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from accounts.budgets import Alert, Subject
from accounts.database import metadata, reached

By = Literal["key", "tenant", "route", "day", "month"]
GROUPS: tuple[str, ...] = get_args(By)
MEASURES = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "micros")
KEPT_SECONDS = 86_400.0
_ROWS_A_STATEMENT = 100
_NOTHING: tuple[int, int] = (0, 0)

spend = sa.Table(
    "spend",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("route", sa.String(128), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in MEASURES),
    sa.Index("spend_of_tenants", "tenant", "day"),
    sa.Index("spend_of_keys", "key", "day"),
)
batches = sa.Table(
    "spend_batches",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
)
alerts = sa.Table(
    "budget_alerts",
    metadata,
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("period", sa.String(10), primary_key=True),
    sa.Column("level", sa.String(4), primary_key=True),
)


class Account(NamedTuple):
    """Where spend is summed up."""

    day: str
    tenant: str
    key: str
    route: str


@dataclass
class Sums:
    """What was spent on one account."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    micros: int = 0


async def apply(engine: AsyncEngine, identity: str, rows: Mapping[Account, Sums], now: float) -> None:
    """Add a batch to the sums, whole or not at all; one that was added before is not added again.

    Raises DatabaseUnavailable; then it may be added or not, and is to be sent again under the same identity.
    """
    async with reached(engine) as connection:
        if not await _new(connection, batches, {"id": identity, "at": now}):
            return
        # In one order everywhere, or two replicas would wait for each other's rows.
        values = [{**account._asdict(), **vars(sums)} for account, sums in sorted(rows.items())]
        for first in range(0, len(values), _ROWS_A_STATEMENT):
            statement = _insert(connection, spend).values(values[first : first + _ROWS_A_STATEMENT])
            added = {name: spend.c[name] + statement.excluded[name] for name in MEASURES}
            await connection.execute(statement.on_conflict_do_update(index_elements=list(Account._fields), set_=added))


async def forget_batches(engine: AsyncEngine, now: float) -> None:
    """Forget batches that nobody sends again; raises DatabaseUnavailable."""
    async with reached(engine) as connection:
        await connection.execute(sa.delete(batches).where(batches.c.at < now - KEPT_SECONDS))


async def spent(engine: AsyncEngine, subjects: Iterable[Subject], day: str) -> dict[Subject, tuple[int, int]]:
    """Return what each has spent on a day and in its month, in micros; raises DatabaseUnavailable."""
    month, found = day[:7], dict.fromkeys(subjects, _NOTHING)
    async with reached(engine, begin=False) as connection:
        for kind in ("key", "tenant"):
            names = [subject.name for subject in found if subject.kind == kind]
            for first in range(0, len(names), _ROWS_A_STATEMENT):
                column = spend.c[kind]
                today = sa.func.sum(sa.case((spend.c.day == day, spend.c.micros), else_=0))
                query = (
                    sa.select(column, today, sa.func.sum(spend.c.micros))
                    .where(column.in_(names[first : first + _ROWS_A_STATEMENT]), *_within(month))
                    .group_by(column)
                )
                for name, of_day, of_month in await connection.execute(query):
                    found[Subject(kind, name)] = (int(of_day), int(of_month))
    return found


async def claim(engine: AsyncEngine, alert: Alert) -> bool:
    """Whether this alert is ours to tell: of all replicas one gets True, once; raises DatabaseUnavailable."""
    row = {"kind": alert.subject.kind, "name": alert.subject.name, "period": alert.period, "level": alert.level}
    async with reached(engine) as connection:
        return await _new(connection, alerts, row)


async def usage(
    engine: AsyncEngine, by: Sequence[str], *, since: str | None = None, until: str | None = None
) -> list[dict[str, Any]]:
    """Return the sums by some of GROUPS, in their order; days from `since` to `until`, both of them included.

    Raises DatabaseUnavailable, and ValueError for what cannot be grouped by.
    """
    if unknown := [name for name in by if name not in GROUPS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    columns = [sa.func.substr(spend.c.day, 1, 7) if name == "month" else spend.c[name] for name in by]
    named = [column.label(f"by_{name}") for name, column in zip(by, columns, strict=True)]
    query = sa.select(*named, *(sa.func.coalesce(sa.func.sum(spend.c[name]), 0).label(name) for name in MEASURES))
    if since:
        query = query.where(spend.c.day >= since)
    if until:
        query = query.where(spend.c.day <= until)
    if columns:
        query = query.group_by(*columns).order_by(*columns)
    async with reached(engine, begin=False) as connection:
        rows = (await connection.execute(query)).all()
    return [
        dict(zip((*by, *MEASURES), (*row[: len(by)], *(int(value) for value in row[len(by) :])), strict=True)) for row in rows
    ]


def _within(month: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return spend.c.day >= f"{month}-01", spend.c.day <= f"{month}-31"


async def _new(connection: AsyncConnection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless it is there; say whether it was not."""
    # Not by rowcount, which psycopg's INSERT does not always have.
    inserted = _insert(connection, table).values(**row).on_conflict_do_nothing().returning(sa.literal(1))
    return (await connection.execute(inserted)).first() is not None


def _insert(connection: AsyncConnection, table: sa.Table) -> Any:
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
