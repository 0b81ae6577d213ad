"""The database of keys and spend: a SQLite file, or PostgreSQL by URL. The schema is brought up to date when it is opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 10
_LOCK = 0x656B6962656E  # "ekiben": of PostgreSQL's advisory locks
metadata = MetaData()


class DatabaseUnavailable(RuntimeError):
    """The database cannot be reached or used; the message says which and what to do, and holds no password."""


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
async def open_database(url: str) -> AsyncGenerator[AsyncEngine]:
    """Yield the database, its schema up to date; raises DatabaseUnavailable.

    Several processes may open it at once: one changes the schema, the others wait.
    """
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
        async with reached(engine) as connection:
            if engine.dialect.name == "postgresql":
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.run_sync(_upgrade)
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def reached(engine: AsyncEngine, *, begin: bool = True) -> AsyncGenerator[AsyncConnection]:
    """Yield a connection, in a transaction where `begin`; raises DatabaseUnavailable for whatever the database says."""
    try:
        async with engine.begin() if begin else engine.connect() as connection:
            if begin and engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("BEGIN IMMEDIATE")  # see _prepare_sqlite
            yield connection
    except (SQLAlchemyError, OSError, CommandError) as error:
        # The query may hold a password too.
        where = engine.url.set(query={}).render_as_string(hide_password=True)
        raise DatabaseUnavailable(f"the database {where} cannot be used now ({type(error).__name__})") from error


class Database:
    """A database that is opened when it is first asked for, and again at the next asking where that failed.

    Raises ValueError for a URL that is none.
    """

    def __init__(self, url: str) -> None:
        async_url(url)
        self._url = url
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()

    async def engine(self) -> AsyncEngine:
        """Return the database, its schema up to date; raises DatabaseUnavailable."""
        async with self._opening:
            if self._engine is None:
                self._engine = await self._opened.enter_async_context(open_database(self._url))
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


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
