"""Revisions of the schema: which programs may use which, what opening changes, and what a downgrade deletes."""

import pytest
import sqlalchemy as sa

from accounts.schema import MIGRATIONS, Loss, Revision, Schema, Unfit, known, named, statements
from tests.newer import AGAIN, CONTRACTING, EXPANDING, newer

SHRINKS = ("0002_for_0001", "Owners are gone", ['op.drop_column("keys", "owner")'], ['op.add_column("keys", sa.Column("owner"))'])
STRICT = (
    "0002_for_0001", "A region each", ['op.add_column("keys", sa.Column("region", sa.String(9), nullable=False))'], ["pass"],
)  # fmt: skip


@pytest.fixture
def connection():
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def versions(tmp_path):
    """The migrations of versions 1 to 4, by their numbers."""
    return {1: MIGRATIONS} | {
        2 + n: newer(tmp_path / str(n), *[EXPANDING, CONTRACTING, AGAIN][: n + 1]) for n in range(3)
    }  # fmt: skip


def current(connection):
    return Schema(connection).current.id


def breaks(before, after):
    """What a program that knows the schema `before` may find missing in the one `after`, or be refused by it."""
    found = [f"table {name} is gone" for name in before if name not in after]
    for table in before.keys() & after.keys():
        (old, rules), (new, later) = before[table], after[table]
        found += [
            f"{table}.{name} is gone or other" for name in old if str(old[name]["type"]) != str(new.get(name, {}).get("type"))
        ]
        found += [
            f"{table}.{name} must be given"
            for name in new.keys() - old.keys()
            if not new[name]["nullable"] and not new[name]["default"]
        ]
        found += [f"{table} has other rules"] if rules != later else []
    return found


def tables(connection):
    look = sa.inspect(connection)
    return {
        name: (
            {column["name"]: column for column in look.get_columns(name)},
            (look.get_pk_constraint(name)["constrained_columns"], look.get_unique_constraints(name), look.get_foreign_keys(name),
             [index for index in look.get_indexes(name) if index["unique"]]),
        )
        for name in look.get_table_names()
    }  # fmt: skip


def broken(connection, scripts):
    """What programs would miss that a revision says it is for."""
    seen = {0: {}}
    for revision in known(scripts):
        Schema(connection, scripts).upgrade(revision.id)
        seen[revision.number] = tables(connection)
        for oldest in range(revision.oldest, revision.number):
            yield from breaks(seen[oldest], seen[revision.number])


def test_every_revision_is_numbered_and_breaks_no_program_that_it_says_it_is_for(connection):
    revisions = known()

    assert [one.number for one in revisions] == list(range(1, len(revisions) + 1))
    assert [one.oldest for one in revisions] == sorted(one.oldest for one in revisions)
    assert list(broken(connection, MIGRATIONS)) == []


@pytest.mark.parametrize(
    ("revision", "told"), [(SHRINKS, "keys.owner is gone"), (STRICT, "keys.region must be given"), (EXPANDING, None)]
)
def test_a_revision_that_says_it_expands_and_does_not_is_found_out(tmp_path, connection, revision, told):
    found = list(broken(connection, newer(tmp_path, revision)))

    assert told in found[0] if told else not found


def test_an_empty_database_gets_all_revisions(connection, versions):
    Schema(connection, versions[4]).prepare()

    assert current(connection) == "0004_for_0002"


def test_opening_expands_and_leaves_what_contracts_to_the_command(connection, versions):
    Schema(connection).prepare()
    Schema(connection, versions[3]).prepare()
    assert current(connection) == "0002_for_0001"
    status = Schema(connection, versions[3]).status()
    assert (status.pending, status.contracts, status.usable) == (["0003_for_0002"], ["0003_for_0002"], True)

    Schema(connection, versions[3]).upgrade()
    assert current(connection) == "0003_for_0002"


def test_a_version_that_needs_more_than_may_be_done_is_refused_until_the_command_was_run(connection, versions):
    Schema(connection).prepare()
    with pytest.raises(Unfit, match=r"needs 0004_for_0002, with which boxes of before it fail; .*ekiben database upgrade"):
        Schema(connection, versions[4]).prepare()
    assert current(connection) == "0001"

    Schema(connection, versions[4]).upgrade()
    Schema(connection, versions[4]).prepare()
    assert current(connection) == "0004_for_0002"


def test_an_older_version_uses_a_schema_that_was_added_to_and_refuses_one_that_was_taken_from(connection, versions):
    Schema(connection, versions[2]).prepare()
    Schema(connection).prepare()
    assert current(connection) == "0002_for_0001"
    assert Schema(connection).status().usable

    Schema(connection, versions[3]).upgrade()
    with pytest.raises(Unfit, match="0003_for_0002, of a newer version, and no longer for one that knows 0001"):
        Schema(connection).prepare()
    assert not Schema(connection).status().usable
    assert Schema(connection, versions[2]).status().usable
    Schema(connection, versions[2]).prepare()


def test_what_a_downgrade_deletes_is_told_before_and_nothing_is_changed_by_telling(connection, versions):
    schema = Schema(connection, versions[2])
    schema.prepare()
    keys = "INSERT INTO keys (id, digest, name, owner, tenant, settings, created_at, note) VALUES (?, ?, '', '', '', '{}', 0, ?)"
    for number, note in enumerate([None, "a", "b"]):
        connection.exec_driver_sql(keys, (str(number), str(number), note))
    connection.exec_driver_sql("INSERT INTO regions VALUES ('eu')")

    assert schema.lost("0001") == [Loss("keys", "note", 2), Loss("regions", None, 1), Loss("spend", "region", 0)]
    assert {loss.table: loss.rows for loss in schema.lost("base")} == {
        "budget_alerts": 0, "keys": 3, "regions": 1, "spend": 0, "spend_batches": 0,
    }  # fmt: skip
    assert current(connection) == "0002_for_0001"
    schema.downgrade("1")
    assert current(connection) == "0001"
    assert connection.exec_driver_sql("SELECT count(*) FROM keys").scalar() == 3


def test_what_cannot_be_done_is_told(connection, versions):
    newest = Schema(connection, versions[3])
    with pytest.raises(Unfit, match="empty"):
        newest.downgrade("base")
    newest.upgrade()
    with pytest.raises(Unfit, match="does not lie before it"):
        newest.downgrade("3")
    with pytest.raises(Unfit, match="there is no revision '9'; this version knows 0001, 0002_for_0001, 0003_for_0002"):
        newest.lost("9")
    with pytest.raises(Unfit, match="0003_for_0002 already"):
        newest.upgrade("1")
    with pytest.raises(Unfit, match="of a newer version; take it back with that one"):
        Schema(connection).downgrade("base")
    connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'f00'")
    with pytest.raises(Unfit, match="'f00', is not Ekiben's"):
        newest.prepare()


def test_revisions_by_their_names():
    assert Revision.read("0004_for_0002")[1:3] == (4, 2)
    assert named("1") == named("0001") == known()[0]
    assert named("base") is None


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_the_sql_of_a_change_for_whoever_may_run_it(dialect, versions):
    up, down = (statements(dialect, *order, versions[3]) for order in [("0001", "0003_for_0002"), ("0002_for_0001", "0001")])

    assert "ADD COLUMN region" in up
    assert "DROP TABLE budget_alerts" in up
    assert "version_num='0003_for_0002'" in up
    assert "DROP COLUMN region" in down
    assert "CREATE TABLE keys" in statements(dialect, "base", "0001")
