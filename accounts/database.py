"""The database of keys and spend: a SQLite file, or PostgreSQL by URL. Its schema is made or expanded when it is opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from accounts.schema import MIGRATIONS, Schema, Unfit

LOCK_SECONDS = 10
_LOCK = 0x656B6962656E  # "ekiben": of PostgreSQL's advisory locks
_T = TypeVar("_T")
metadata = MetaData()


class DatabaseUnavailable(RuntimeError):
    """The database cannot be reached or used; the message says which and what to do, and holds no password."""


class SchemaMismatch(DatabaseUnavailable):
    """The database's schema is not for this version of the program, or not to be changed so; the message says what to do."""


def async_url(url: str) -> str:
    """Return a URL, sqlite:///FILE or postgresql://..., as SQLAlchemy's asyncio wants it; raises ValueError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    if parsed is None or parsed.drivername not in drivers:
        raise ValueError("a database is sqlite:///FILE or postgresql://USER@HOST/NAME")
    return parsed.set(drivername=drivers[parsed.drivername]).render_as_string(hide_password=False)


@asynccontextmanager
async def open_database(url: str, scripts: Path = MIGRATIONS) -> AsyncGenerator[AsyncEngine]:
    """Yield the database, its schema made or expanded by what `scripts` knows; raises DatabaseUnavailable, and SchemaMismatch.

    Several processes may open it at once: one changes the schema, the others wait.
    """
    async with connected(url) as engine:
        await on_schema(engine, Schema.prepare, scripts)
        yield engine


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[AsyncEngine]:
    """Yield the database as it is; raises DatabaseUnavailable where there can be no file of that name."""
    # A server's connection may have died since; to ask a file first would double the way to it.
    engine = create_async_engine(async_url(url), pool_pre_ping=not url.startswith("sqlite"), **_options(url))
    if engine.dialect.name == "sqlite":
        folder = Path(str(engine.url.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(f"the folder {folder} of the database cannot be made ({type(error).__name__})") from error
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    try:
        yield engine
    finally:
        await engine.dispose()


async def on_schema(engine: AsyncEngine, what: Callable[[Schema], _T], scripts: Path = MIGRATIONS) -> _T:
    """Do something with the schema, in one transaction and one process at a time; raises DatabaseUnavailable, SchemaMismatch."""

    def done(connection: Connection) -> _T:
        return what(Schema(connection, scripts))

    try:
        async with reached(engine) as connection:
            if engine.dialect.name == "postgresql":
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            return await connection.run_sync(done)
    except Unfit as error:
        raise SchemaMismatch(f"the database {_shown(engine)} cannot be used: {error}") from error


@asynccontextmanager
async def reached(engine: AsyncEngine, *, begin: bool = True) -> AsyncGenerator[AsyncConnection]:
    """Yield a connection, in a transaction where `begin`; raises DatabaseUnavailable for whatever the database says."""
    try:
        async with engine.begin() if begin else engine.connect() as connection:
            if begin and engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("BEGIN IMMEDIATE")  # see _prepare_sqlite
            yield connection
    except (SQLAlchemyError, OSError, CommandError) as error:
        raise DatabaseUnavailable(f"the database {_shown(engine)} cannot be used now ({type(error).__name__})") from error


class Database:
    """A database that is opened when it is first asked for, and again at the next asking where that failed.

    Raises ValueError for a URL that is none.
    """

    def __init__(self, url: str, scripts: Path = MIGRATIONS) -> None:
        async_url(url)
        self._url, self._scripts = url, scripts
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()

    async def engine(self) -> AsyncEngine:
        """Return the database, its schema made or expanded; raises DatabaseUnavailable, and SchemaMismatch."""
        async with self._opening:
            if self._engine is None:
                self._engine = await self._opened.enter_async_context(open_database(self._url, self._scripts))
            return self._engine

    async def aclose(self) -> None:
        """Let go of the connections."""
        self._engine = None
        await self._opened.aclose()


def _options(url: str) -> dict[str, Any]:
    timeout = {"timeout": LOCK_SECONDS} if url.startswith("sqlite") else {"connect_timeout": LOCK_SECONDS}
    return {"connect_args": timeout}


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # aiosqlite's own BEGIN would come late: two writers that read first would both fail.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _shown(engine: AsyncEngine) -> str:
    # The query may hold a password too; the driver is ours, and nobody named it.
    return engine.url.set(query={}, drivername=engine.url.get_backend_name()).render_as_string(hide_password=True)
