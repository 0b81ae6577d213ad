"""`ekiben database` as it is typed, on SQLite and on PostgreSQL."""

import asyncio
import json

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from accounts.database import open_database
from accounts.keys import KeyStore, NewKey
from services.cli import app


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path, monkeypatch):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ekiben.db"
    else:
        server, name = request.getfixturevalue("postgres_url"), f"command{abs(hash(request.node.nodeid))}"
        admin = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        admin.dispose()
        url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("EKIBEN_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "200")
    return url


def ekiben(*arguments):
    return CliRunner().invoke(app, ["database", *arguments])


def test_forward_and_back(url):
    empty = json.loads(ekiben("status", "--json").stdout)
    assert (empty["current"], empty["pending"], empty["contracts"], empty["usable"]) == (None, ["0001"], [], True)
    assert "pending: 0001: API keys, and what was spent." in ekiben("status").stdout
    assert "CREATE TABLE keys" in ekiben("upgrade", "--sql").stdout
    assert json.loads(ekiben("status", "--json").stdout)["current"] is None

    assert ekiben("upgrade").stdout == "schema: 0001\n"
    made = asyncio.run(_made(url))
    refused = ekiben("downgrade", "--to", "base")
    assert refused.exit_code == 1
    assert "will be deleted: table keys (1 row)" in refused.stderr
    assert "There is no terminal to ask on; give --yes." in refused.stderr
    assert asyncio.run(_list(url)) == [made]
    assert "DROP TABLE keys" in ekiben("downgrade", "--to", "base", "--sql").stdout
    assert asyncio.run(_list(url)) == [made]

    done = ekiben("downgrade", "--to", "base", "--yes", "--json")
    assert json.loads(done.stdout)["deleted"][1] == {"table": "keys", "column": None, "rows": 1}
    assert json.loads(ekiben("status", "--json").stdout)["current"] is None


def test_where_there_is_nothing_to_do_that_is_a_remark(url):
    assert ekiben("upgrade").exit_code == 0
    for arguments in (["upgrade", "--sql"], ["downgrade", "--to", "0001"]):
        done = ekiben(*arguments)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "the schema is 0001 already\n")
    done = ekiben("downgrade", "--to", "0001", "--json")

    assert json.loads(done.stdout) == {"schema": "0001", "deleted": []}


def test_to_look_makes_no_database(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "ekiben.db"
    monkeypatch.setenv("EKIBEN_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("COLUMNS", "300")
    done = ekiben("status")

    assert done.exit_code == 0
    assert f"none yet: there is no database at {file}" in done.stdout
    assert "pending: 0001" in done.stdout
    assert not file.parent.exists()


def test_messages_name_no_driver(tmp_path, monkeypatch):
    (tmp_path / "ekiben.db").write_text("no database")
    monkeypatch.setenv("EKIBEN_DATABASE_URL", f"sqlite:///{tmp_path}/ekiben.db")
    done = ekiben("status")

    assert done.exit_code == 1
    assert "sqlite:///" in done.stderr.replace("\n", "")
    assert "aiosqlite" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["downgrade", "--to", "base"], "empty"),
        (["downgrade", "--to", "7"], "there is no revision '7'; this version knows 0001"),
        (["upgrade", "--to", "base", "--sql"], "nothing lies between it and base"),
    ],
)
def test_what_cannot_be_done_is_one_line(url, arguments, told):
    done = ekiben(*arguments)

    assert done.exit_code == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


async def _made(url):
    async with open_database(url) as engine:
        return (await KeyStore(engine).create(NewKey(name="app", owner="jane", tenant="acme"))).key


async def _list(url):
    async with open_database(url) as engine:
        return await KeyStore(engine).list()


def test_a_schema_of_a_newer_version_ends_the_command_with_1(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/ekiben.db"
    monkeypatch.setenv("EKIBEN_DATABASE_URL", url)
    assert ekiben("upgrade").exit_code == 0
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9002_for_9001'")
    engine.dispose()
    done = ekiben("status")

    assert done.exit_code == 1
    assert "serve one that knows 9001 or later" in done.stderr
    keys = CliRunner().invoke(app, ["keys", "list"])
    assert keys.exit_code == 1
    assert "9002_for_9001, of a newer version" in keys.stderr
