"""The schema goes forward and back on real databases, and two versions of the box serve on one of them at the same time."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import sqlalchemy as sa

from accounts.database import DatabaseUnavailable, SchemaMismatch, connected, on_schema, open_database, reached
from accounts.keys import KeyStore, NewKey
from accounts.schema import MIGRATIONS, Schema, known
from accounts.spend import Account, Sums, apply, usage
from tests.newer import AGAIN, CONTRACTING, EXPANDING, newer
from tests.serving import engines, serving, written

NEW = NewKey(name="app", owner="jane", tenant="acme", budget_day=2.5)
ROUTES = """
tenants: {acme: {budget: {day: 1000000}}}
routes: {chat: {prompt: plain, policy: open, parameters: {temperature: 0}, price: {prompt: 1, completion: 1}}}
"""


@pytest.fixture
def postgres_database(postgres_url, request):
    """A database of the test's own on a real PostgreSQL."""
    name = f"rollout{abs(hash(request.node.nodeid))}"
    admin = sa.create_engine(sa.make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path}/ekiben.db" if request.param == "sqlite" else request.getfixturevalue("postgres_database")


async def held(engine):
    """Everything in the tables of version 1."""
    async with reached(engine, begin=False) as connection:
        columns = "id, digest, name, owner, tenant, settings, created_at, expires_at, revoked_at"
        rows = [(await connection.exec_driver_sql(f"SELECT {columns} FROM keys ORDER BY id")).all()]
        spend = "day, tenant, key, route, requests, prompt_tokens, cached_tokens, completion_tokens, micros"
        return [*rows, (await connection.exec_driver_sql(f"SELECT {spend} FROM spend ORDER BY day, key")).all()]


async def test_data_live_through_forward_back_and_forward_again(url, tmp_path):
    scripts = newer(tmp_path, EXPANDING, CONTRACTING, AGAIN)
    async with open_database(url) as engine:
        made = [await KeyStore(engine).create(NEW) for _ in range(3)]
        rows = {Account(f"2026-01-0{n + 1}", "acme", made[n].key.id, "chat"): Sums(n, 2, 3, 4, 5) for n in range(3)}
        await apply(engine, "batch", rows, 1.0)
        before = await held(engine)
        for to in ("0004_for_0002", "0002_for_0001"):
            await on_schema(engine, Schema.upgrade, scripts)
            async with reached(engine) as connection:
                await connection.exec_driver_sql("INSERT INTO regions VALUES ('eu', 'jane')")
            assert await held(engine) == before
            await on_schema(engine, lambda schema: schema.downgrade("0001"), scripts)
            assert await held(engine) == before
            assert await KeyStore(engine).verify(made[0].secret) == made[0].key
            await apply(engine, "batch", rows, 1.0)  # known from before the change: it counts once
            assert await held(engine) == before
            await on_schema(engine, lambda schema, to=to: schema.upgrade(to), scripts)
            await on_schema(engine, lambda schema: schema.downgrade("0001"), scripts)

        assert await on_schema(engine, lambda schema: schema.lost("base")) == [
            ("budget_alerts", None, 0), ("keys", None, 3), ("spend", None, 3), ("spend_batches", None, 1),
        ]  # fmt: skip
        await on_schema(engine, lambda schema: schema.downgrade("base"))
        await on_schema(engine, Schema.prepare)
        assert await KeyStore(engine).list() == []


async def test_each_present_revision_goes_back_to_the_one_before_and_forward(url):
    async with connected(url) as engine:
        shapes = {"base": await on_schema(engine, _shape)}
        for revision in known():
            await on_schema(engine, lambda schema, to=revision.id: schema.upgrade(to))
            shapes[revision.id] = await on_schema(engine, _shape)
        order = ["base", *(revision.id for revision in known())]
        for before, after in reversed(list(pairwise(order))):
            await on_schema(engine, lambda schema, to=before: schema.downgrade(to))
            assert await on_schema(engine, _shape) == shapes[before]
            await on_schema(engine, lambda schema, to=after: schema.upgrade(to))
            assert await on_schema(engine, _shape) == shapes[after]
            await on_schema(engine, lambda schema, to=before: schema.downgrade(to))


def _shape(schema):
    look = sa.inspect(schema._connection)
    tables = sorted(set(look.get_table_names()) - {"alembic_version"})
    return {name: [(column["name"], str(column["type"])) for column in look.get_columns(name)] for name in tables}


async def test_a_change_that_fails_halfway_leaves_the_schema_as_it_was(url, tmp_path):
    broken = (*EXPANDING[:2], [*EXPANDING[2], 'op.execute("INSERT INTO nowhere VALUES (1)")'], EXPANDING[3])
    async with open_database(url) as engine:
        before = await on_schema(engine, _shape)
        with pytest.raises(DatabaseUnavailable):
            await on_schema(engine, Schema.prepare, newer(tmp_path, broken))

        assert await on_schema(engine, _shape) == before
        assert (await on_schema(engine, Schema.status)).current == "0001"


async def test_what_a_newer_version_took_away_stops_an_older_box_with_one_line(url, tmp_path):
    async with open_database(url, newer(tmp_path, EXPANDING, CONTRACTING)):
        pass
    with pytest.raises(SchemaMismatch, match="0003_for_0002, of a newer version, and no longer for one that knows 0001"):
        async with open_database(url):
            pass


@asynccontextmanager
async def load(ask, clients):
    """Ask until the end; yields what was answered."""
    answered, running = Counter(), True

    async def client():
        while running:
            answered[await ask()] += 1

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield answered
    finally:
        running = False
        await asyncio.gather(*tasks)


async def test_two_versions_serve_on_one_database_during_a_rollout_with_no_failed_request_and_exact_totals(
    postgres_database, tmp_path
):
    """Old boxes serve; a new one comes and expands the schema under their load; an old one starts anew on it; the old ones go."""
    url, scripts = postgres_database, newer(tmp_path, EXPANDING)
    answered = Counter()
    async with engines() as [engine]:

        def version(name, scripts=MIGRATIONS):
            return serving(written(tmp_path / name, ROUTES), engine.url, database_url=url, scripts=scripts)

        async def asks(box, key):
            return (await box.post(key=key)).status_code

        async with version("old") as old, open_database(url) as database:
            secret = await old.key()
            assert (await on_schema(database, Schema.status)).current == "0001"
            async with load(lambda: asks(old, secret), 4) as by_old:
                await _more(by_old, 100)
                async with version("new", scripts) as new:
                    made = await new.key()  # opens the database: the schema is expanded while the old box is asked
                    assert (await on_schema(database, lambda schema: schema.current.id, scripts)) == "0002_for_0001"
                    async with load(lambda: asks(new, made), 4) as by_new, load(lambda: asks(new, secret), 2) as by_both:
                        async with version("old again") as again:
                            fresh = await again.key()
                            async with load(lambda: asks(again, fresh), 2) as by_again, _notes(url) as notes:
                                await _more(by_old, 150)
                                await _more(by_new, 150)
                                await _more(by_again, 100)
                        await _more(by_new, 100)
                    for count in (by_new, by_both, by_again):
                        answered += count
                await _more(by_old, 100)
            answered += by_old
            assert (await on_schema(database, Schema.status)).usable

        async with open_database(url, scripts) as database:
            [total] = await usage(database, [])
            async with reached(database, begin=False) as connection:
                regions = (await connection.exec_driver_sql("SELECT DISTINCT region FROM spend")).scalars().all()
                noted = (await connection.exec_driver_sql("SELECT count(*) FROM keys WHERE note IS NOT NULL")).scalar()

    assert set(answered) == {200}
    assert total["requests"] == answered[200]
    assert total["micros"] == 10 * answered[200]
    assert regions == ["here"]
    assert noted == len(notes) > 10


@asynccontextmanager
async def _notes(url):
    """What the new version's code does beside: it writes what the old one does not know."""
    made, running = [], True

    async def write():
        async with connected(url) as engine:
            store = KeyStore(engine)
            while running:
                key = (await store.create(NEW)).key
                async with reached(engine) as connection:
                    await connection.execute(sa.text("UPDATE keys SET note = 'new' WHERE id = :id"), {"id": key.id})
                made.append(key.id)

    task = asyncio.create_task(write())
    try:
        yield made
    finally:
        running = False
        await task


async def _more(counted, wanted, seconds=60):
    """Wait until so many more were answered."""
    from_here = counted.total()
    async with asyncio.timeout(seconds):
        while counted.total() < from_here + wanted:  # noqa: ASYNC110  they are counted by clients
            await asyncio.sleep(0.01)
