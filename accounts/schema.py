"""The schema of the database in revisions: brought up to date, or back, and which programs may use which revision.

A revision's identifier says who may use it: `0004_for_0002` is the fourth, and good for programs that know the second or a later
one. So a program finds out of a schema that was made after it whether it may use it. A revision that adds keeps the second number
of the one before (it expands); one that takes away what older programs use raises it (it contracts). Opening a database expands
it and no more: to contract is for `ekiben database upgrade`, when no older box serves.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"
BASE = "base"
"""The revision before the first: an empty database."""
_FORM = re.compile(r"(\d{4})(?:_for_(\d{4}))?")


class Unfit(ValueError):
    """A schema that this program may not use, or cannot be brought where it was to be; the message says what to do."""


class Revision(NamedTuple):
    """One state of the schema."""

    id: str
    number: int
    oldest: int
    """Number of the newest revision that a program must know to use this one."""
    about: str = ""

    @classmethod
    def read(cls, identity: str, about: str = "") -> Revision:
        """Return the revision of an identifier; raises Unfit for one of another form."""
        form = _FORM.fullmatch(identity)
        if form is None:
            raise Unfit(f"its schema, {identity!r}, is not Ekiben's")
        return cls(identity, int(form[1]), int(form[2] or form[1]), about)

    def serves(self, newest: Revision) -> bool:
        """Whether a program may use this schema whose newest revision is `newest`; an older schema it expands itself."""
        return self.number <= newest.number or self.oldest <= newest.number


class Status(NamedTuple):
    """How a database stands to this program."""

    current: str | None
    """None: empty."""
    known: str
    """The newest revision of this program."""
    pending: list[str]
    contracts: list[str]
    """Of the pending ones, those after which older programs fail."""
    usable: bool
    oldest: str | None
    """A program that knows this revision may still use the database."""


class Loss(NamedTuple):
    """What a downgrade deletes: a table, or a column of one that stays."""

    table: str
    column: str | None
    rows: int
    """How many there are; of a column, those that hold something."""


class Schema:
    """The schema behind a connection, whose transaction is the caller's, and the revisions that this program knows."""

    def __init__(self, connection: Connection, scripts: Path = MIGRATIONS) -> None:
        self._connection, self._scripts = connection, scripts
        self.revisions = known(scripts)

    @property
    def current(self) -> Revision | None:
        """The revision of the database; None while it is empty. Raises Unfit for one that is not ours."""
        identity = MigrationContext.configure(self._connection).get_current_revision()
        return Revision.read(identity) if identity else None

    def status(self) -> Status:
        """Return how the database stands to this program; raises Unfit."""
        current = self.current
        pending = self._after(current)
        usable = current is None or self._fits(current)
        return Status(
            current.id if current else None,
            self.revisions[-1].id,
            [revision.id for revision in pending],
            [one.id for one in _contracting(current, pending)],
            usable,
            f"{current.oldest:04}" if current else None,
        )

    def prepare(self) -> None:
        """Make the schema of an empty database, or expand it so that this program may use it; raises Unfit.

        One that is newer is left as it is, where older programs may use it.
        """
        current = self.current
        if current is not None and not self._fits(current):
            raise Unfit(
                f"its schema is {current.id}, of a newer version, and no longer for one that knows {self.revisions[-1].id}; "
                "serve a newer version, or take the schema back with that one: `ekiben database downgrade`"
            )
        pending = self._after(current)
        contracting = _contracting(current, pending)
        expanding = pending[: pending.index(contracting[0])] if contracting else pending
        if len(contracting) < len(pending) - len(expanding):
            # What this program needs comes after what would end the programs of before.
            raise Unfit(
                f"its schema is {current.id if current else BASE}, and this version needs {self.revisions[-1].id}, with which "
                "boxes of before it fail; when none of them serves, run `ekiben database upgrade`"
            )
        if expanding:
            command.upgrade(self._config(), expanding[-1].id)

    def upgrade(self, to: str | None = None) -> None:
        """Bring the schema to a revision, else to the newest, also where that contracts it; raises Unfit."""
        target, current = named(to or self.revisions[-1].id, self._scripts), self.current
        if target is None or (current is not None and (target.number < current.number or not self._knows(current))):
            raise Unfit(f"its schema is {current.id if current else BASE} already; `ekiben database downgrade` takes it back")
        command.upgrade(self._config(), target.id)

    def downgrade(self, to: str) -> None:
        """Take the schema back to a revision, or to BASE; raises Unfit. What `lost` tells is gone."""
        target = self._below(to)
        command.downgrade(self._config(), target.id if target else BASE)

    def lost(self, to: str) -> list[Loss]:
        """Return what `downgrade` would delete, the database left as it is; raises Unfit."""
        target, current = self._below(to), self.current
        assert current is not None  # noqa: S101  _below has refused an empty one
        # By the revisions, on an empty database of their own: to try it here would lock out the boxes that serve.
        scratch = sa.create_engine("sqlite://")
        with scratch.connect() as connection:
            config = _config(self._scripts, connection)
            command.upgrade(config, current.id)
            before = _columns(connection)
            command.downgrade(config, target.id if target else BASE)
            after = _columns(connection)
        scratch.dispose()
        losses: list[Loss] = []
        for table, columns in sorted(before.items()):
            if table not in after:
                losses.append(Loss(table, None, self._count(table, None)))
            else:
                losses += [Loss(table, column, self._count(table, column)) for column in sorted(columns - after[table])]
        return losses

    def _knows(self, current: Revision) -> bool:
        return any(one.id == current.id for one in self.revisions)

    def _fits(self, current: Revision) -> bool:
        return self._knows(current) or current.oldest <= self.revisions[-1].number < current.number

    def _after(self, current: Revision | None) -> list[Revision]:
        return [one for one in self.revisions if current is None or one.number > current.number]

    def _below(self, to: str) -> Revision | None:
        target, current = named(to, self._scripts), self.current
        if current is None:
            raise Unfit("it is empty: there is nothing to take back")
        if not self._knows(current):
            raise Unfit(f"its schema, {current.id}, is of a newer version; take it back with that one")
        if target is not None and target.number >= current.number:
            raise Unfit(f"its schema is {current.id}: {target.id} does not lie before it")
        return target

    def _count(self, table: str, column: str | None) -> int:
        held = sa.column(column).is_not(None) if column else sa.true()
        return self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table)).where(held)) or 0

    def _config(self) -> Config:
        return _config(self._scripts, self._connection)


def known(scripts: Path = MIGRATIONS) -> list[Revision]:
    """Return the revisions of a folder, the oldest first."""
    found = ScriptDirectory.from_config(_config(scripts)).walk_revisions()
    return [Revision.read(one.revision, (one.doc or "").strip()) for one in reversed(list(found))]


def named(name: str, scripts: Path = MIGRATIONS) -> Revision | None:
    """Return a revision by its number, such as 0002 or 2, or identifier; None is BASE. Raises Unfit."""
    if name == BASE:
        return None
    number, revisions = (int(name) if name.isdecimal() else None), known(scripts)
    found = next((one for one in revisions if name == one.id or number == one.number), None)
    if found is None:
        raise Unfit(f"there is no revision {name!r}; this version knows {', '.join(one.id for one in revisions)} and base")
    return found


def statements(dialect: str, start: str, end: str, scripts: Path = MIGRATIONS) -> str:
    """Return the SQL from one revision to another, by their identifiers, for whoever may not let a program change the schema."""
    order = [BASE, *(one.id for one in known(scripts))]
    config = _config(scripts)
    config.attributes["dialect"] = dialect
    config.output_buffer = written = io.StringIO()
    change = command.upgrade if order.index(start) < order.index(end) else command.downgrade
    change(config, f"{start}:{end}", sql=True)
    return written.getvalue()


def _contracting(current: Revision | None, pending: list[Revision]) -> list[Revision]:
    if current is None:  # nobody uses an empty database
        return []
    before = [current, *pending]
    return [one for previous, one in zip(before, pending, strict=False) if one.oldest > previous.oldest]


def _columns(connection: Connection) -> dict[str, set[str]]:
    inspector = sa.inspect(connection)
    return {table: {column["name"] for column in inspector.get_columns(table)} for table in inspector.get_table_names()}


def _config(scripts: Path, connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
