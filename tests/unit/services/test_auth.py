"""Who is let in, what is remembered of keys, and what a key may use; the store is a stand-in that counts what it is asked."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from structlog.testing import capture_logs

from accounts.database import DatabaseUnavailable
from accounts.keys import Key
from rag.access import Access
from services import auth as module
from services.api import EmbeddingModel, Parts, create_app
from services.auth import ADMIN_ROLE, BAD_SECONDS, GOOD_SECONDS, Auth, presented
from services.caller import ANYBODY, Caller, CallerHeaders
from services.errors import Forbidden, KeysUnavailable, Unauthorized

TOKEN = "a-token-that-is-long-enough"
IDENTITY = "0123456789abcdef"
SECRET = f"ek_{IDENTITY}_{'s' * 43}"
WRONG = f"ek_{IDENTITY}_{'w' * 43}"
KEY = Key(id=IDENTITY, name="app", owner="jane", tenant="acme", roles={"staff"}, created_at=1.0)
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
LOCAL = "127.0.0.1"


class Store:
    """Keys by secret; can be down or hang."""

    def __init__(self):
        self.keys = {SECRET: KEY}
        self.down = self.hangs = False
        self.asked = []

    async def open(self):
        if self.down:
            raise DatabaseUnavailable("the database is away")
        return self

    async def verify(self, secret):
        self.asked.append(secret)
        await asyncio.sleep(60 if self.hangs else 0)
        return self.keys.get(secret)


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def auth(store, time):
    return Auth(store.open, clock=time, timer=time)


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


# Where a key is looked for


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({}, None), (bearer(SECRET), SECRET), ({"authorization": f"bearer  {SECRET} "}, SECRET), ({"x-api-key": SECRET}, SECRET),
        ({"authorization": SECRET}, None), ({"authorization": f"Basic {SECRET}"}, None), (bearer("none"), None),
        (bearer(""), None),
        ({**bearer("sk-none"), "x-api-key": SECRET}, SECRET), ({**bearer(SECRET), "x-api-key": WRONG}, SECRET),
        (bearer("ek_half"), "ek_half"),
    ],
)  # fmt: skip
def test_where_a_key_is_looked_for(headers, secret):
    assert presented(headers) == secret


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_a_key_says_who_it_is_and_headers_do_not_matter_then(store, name):
    auth = Auth(store.open, callers=CallerHeaders("x-tenant", "x-roles"), anonymous=True)
    headers = {name: f"Bearer {SECRET}" if name == "authorization" else SECRET, "x-tenant": "globex", "x-roles": "boss"}

    assert await auth.caller(headers, LOCAL) == Caller("acme", frozenset({"staff"}), KEY)


# Without a key


@pytest.mark.parametrize("anonymous", [False, True, "loopback"])
@pytest.mark.parametrize(
    "secret",
    [
        WRONG,
        "ek_",
        "ek_half",
        SECRET + "x",
        SECRET.upper().replace("EK_", "ek_"),
        f"ek_{'f' * 16}_{'s' * 43}",
        f"ek_{IDENTITY}_é",
    ],
)
async def test_a_wrong_key_is_refused_also_where_nobody_needs_one(store, anonymous, secret):
    auth = Auth(store.open, anonymous=anonymous)
    with pytest.raises(Unauthorized) as refused:
        await auth.caller(bearer(secret), LOCAL)

    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert refused.value.headers()["www-authenticate"] == "Bearer"
    assert secret not in refused.value.message


@pytest.mark.parametrize("headers", [{}, bearer("none"), {"x-api-key": "sk-1"}, {"x-tenant": "acme"}])
async def test_nobody_is_let_in_unless_the_bundle_says_so(auth, store, headers):
    with pytest.raises(Unauthorized, match="API key"):
        await auth.caller(headers, LOCAL)
    with pytest.raises(Unauthorized):
        await Auth().caller(headers, LOCAL)

    assert await Auth(anonymous=True).caller(headers, None) == ANYBODY
    assert store.asked == []


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
async def test_loopback_lets_in_who_is_on_this_machine(peer):
    auth = Auth(anonymous="loopback")

    assert await auth.caller({}, peer) == ANYBODY
    for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
        with pytest.raises(Unauthorized):
            await auth.caller({header: "127.0.0.1"}, peer)


@pytest.mark.parametrize(
    "peer", [None, "", "testclient", "10.0.0.1", "172.17.0.1", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0", "::"]
)
async def test_loopback_lets_in_nobody_else(peer):
    with pytest.raises(Unauthorized):
        await Auth(anonymous="loopback").caller({}, peer)


async def test_a_trusted_proxy_names_callers_without_keys_and_nobody_else_comes_in():
    auth = Auth(callers=CallerHeaders("X-Tenant", "X-Roles"))

    assert await auth.caller({"x-tenant": "acme", "x-roles": "staff, hr"}, "10.0.0.1") == Caller(
        "acme", frozenset({"staff", "hr"})
    )
    assert await auth.caller({"x-tenant": "acme", **bearer("a.proxys.jwt")}, None) == Caller("acme")
    for headers in ({}, {"x-tenant": " "}, {"x-other": "acme"}):
        with pytest.raises(Unauthorized):
            await auth.caller(headers, LOCAL)


# What is remembered


async def test_a_key_is_looked_up_once_in_a_while_and_a_revocation_is_seen_by_then(auth, store, time):
    for _ in range(3):
        assert await auth.key(SECRET) == KEY
    del store.keys[SECRET]
    time.now += GOOD_SECONDS - 0.1
    assert await auth.key(SECRET) == KEY
    assert store.asked == [SECRET]

    time.now += 0.2
    with pytest.raises(Unauthorized, match="wrong, or was revoked"):
        await auth.key(SECRET)


async def test_what_was_changed_here_is_looked_up_at_once(auth, store):
    await auth.key(SECRET)
    del store.keys[SECRET]
    auth.forget("f" * 16)
    assert await auth.key(SECRET) == KEY
    auth.forget(IDENTITY)

    with pytest.raises(Unauthorized):
        await auth.key(SECRET)


async def test_a_wrong_key_is_remembered_for_less_long(auth, store, time):
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await auth.key(WRONG)
    assert store.asked == [WRONG]
    store.keys[WRONG] = KEY
    time.now += BAD_SECONDS + 0.1

    assert await auth.key(WRONG) == KEY


async def test_wrong_keys_in_masses_fill_nothing_and_drive_nobody_out(auth, store, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 50)
    auth = Auth(store.open, timer=Time())
    await auth.key(SECRET)
    for number in range(200):
        with pytest.raises(Unauthorized):
            await auth.key(f"ek_{number:016x}_{'w' * 43}")
    store.down = True

    assert await auth.key(SECRET) == KEY
    assert len(auth._bad) <= 50


async def test_an_expired_key_is_told_so_also_when_it_is_remembered(auth, store, time):
    store.keys[SECRET] = KEY.model_copy(update={"expires_at": time.now + 1})
    assert (await auth.key(SECRET)).id == IDENTITY
    time.now += 1
    with pytest.raises(Unauthorized) as refused:
        await auth.key(SECRET)

    assert (refused.value.status, refused.value.code) == (401, "expired_api_key")
    assert store.asked == [SECRET]


async def test_requests_at_once_are_one_question_and_one_who_leaves_takes_none_with_him(auth, store):
    asking = [asyncio.create_task(auth.key(SECRET)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)

    assert found[1:] == [KEY] * 19
    assert store.asked == [SECRET]


@pytest.mark.parametrize("how", ["down", "hangs"])
async def test_without_the_database_only_remembered_keys_come_in_and_those_not_for_long(auth, store, time, monkeypatch, how):
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.05)
    await auth.key(SECRET)
    setattr(store, how, True)
    assert await auth.key(SECRET) == KEY
    with pytest.raises(KeysUnavailable) as refused:
        await auth.key(WRONG)
    assert (refused.value.status, refused.value.code, refused.value.headers()["retry-after"]) == (503, "keys_unavailable", "5")

    time.now += GOOD_SECONDS + 1
    with pytest.raises(KeysUnavailable):
        await auth.key(SECRET)
    setattr(store, how, False)
    assert await auth.key(SECRET) == KEY  # an outage is not remembered as a verdict


async def test_the_log_has_ids_and_no_secret(auth, store):
    with capture_logs() as logs:
        await auth.key(SECRET)
        with pytest.raises(Unauthorized):
            await auth.key(WRONG)
        store.down = True
        with pytest.raises(KeysUnavailable):
            await auth.key(f"ek_{'1' * 16}_{'n' * 43}")

    assert [line["key"] for line in logs if line["event"] == "key refused"] == [f"ek_{IDENTITY}"]
    assert not [tail for tail in ("s" * 43, "w" * 43, "n" * 43) if tail in str(logs)]


# The admin API


async def test_the_admin_api_and_the_data_plane_do_not_mix(auth, store):
    admin = f"ek_{'a' * 16}_{'a' * 43}"
    store.keys[admin] = KEY.model_copy(update={"id": "a" * 16, "roles": frozenset({ADMIN_ROLE, "staff"})})

    assert await auth.administrator(bearer(admin), None) == f"ek_{'a' * 16}"
    assert await auth.administrator({"x-api-key": admin}, TOKEN) == f"ek_{'a' * 16}"
    assert await auth.administrator(bearer(TOKEN), TOKEN) == "token"
    with pytest.raises(Forbidden, match="admin API alone"):
        await auth.caller(bearer(admin), LOCAL)
    with pytest.raises(Forbidden, match=ADMIN_ROLE):
        await auth.administrator(bearer(SECRET), TOKEN)
    with pytest.raises(Unauthorized):
        await auth.caller(bearer(TOKEN), LOCAL)


async def test_a_proxys_header_makes_no_administrator(store):
    auth = Auth(store.open, callers=CallerHeaders("x-tenant", "x-roles"), anonymous=True)
    headers = {"x-tenant": "acme", "x-roles": ADMIN_ROLE}
    for given in (headers, {**headers, **bearer("None")}, {**headers, **bearer("")}):
        for token in (None, TOKEN):
            with pytest.raises(Unauthorized):
                await auth.administrator(given, token)


# What a key may use, over HTTP


@asynccontextmanager
async def box(pipeline, adapters, auth):
    async def embed(text, kind):
        return [1.0], 1

    @asynccontextmanager
    async def compose():
        yield Parts(pipeline, EmbeddingModel("e5", 1, embed), 10_000, adapters, TOKEN, auth)

    app = create_app(compose)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://box") as client:
        yield client


@pytest.fixture
async def http(adapted, adapters, auth):
    async with box(adapted, adapters, auth) as client:
        yield client


def narrowed(store, **settings):
    store.keys[SECRET] = KEY.model_copy(update={name: frozenset(names) for name, names in settings.items()})


def shaped(answer, status, code):
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    return answer.json()["error"]["message"]


DATA_PLANE = [
    ("POST", "/v1/chat/completions", HELLO), ("POST", "/v1/chat/completions", {**HELLO, "stream": True}),
    ("POST", "/v1/completions", {"model": "chat", "prompt": "hi"}), ("POST", "/v1/embeddings", {"model": "e5", "input": "a"}),
    ("POST", "/v1/rag/search", {"model": "ask", "query": "a"}), ("GET", "/v1/rag/documents?model=ask", None),
    ("POST", "/v1/rag/documents", {"model": "ask", "documents": [{"id": "a", "text": "b"}]}),
    ("DELETE", "/v1/rag/documents/a?model=ask", None), ("GET", "/v1/vector_stores", None), ("GET", "/v1/vector_stores/ask", None),
    ("POST", "/v1/vector_stores/ask/search", {"query": "a"}), ("GET", "/v1/models", None), ("GET", "/v1/models/chat", None),
    ("POST", "/v1/files", {}), ("GET", "/v1/files", None), ("GET", "/v1/files/a", None), ("DELETE", "/v1/files/a", None),
    ("POST", "/v1/vector_stores/ask/files", {"file_id": "a"}), ("GET", "/v1/vector_stores/ask/files", None),
    ("GET", "/v1/vector_stores/ask/files/a", None), ("DELETE", "/v1/vector_stores/ask/files/a", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), DATA_PLANE)
async def test_every_way_into_the_data_plane_asks_for_a_key(http, store, engine, papers, method, path, body):
    shaped(await http.request(method, path, json=body), 401, "invalid_api_key")
    shaped(await http.request(method, path, json=body, headers=bearer(WRONG)), 401, "invalid_api_key")
    store.down = True
    shaped(await http.request(method, path, json=body, headers=bearer(SECRET)), 503, "keys_unavailable")
    assert (engine.asked, papers.asked) == ([], [])


def test_no_way_was_forgotten():
    """Every route of the app but the admin API's is in the list above."""
    routes = [route for route in create_app(lambda: None).routes if not route.path.startswith("/admin/")]

    for route in routes:
        for method in route.methods - {"HEAD"}:
            assert any(
                method == asked and route.path_regex.match(path.partition("?")[0]) for asked, path, _ in DATA_PLANE
            ), route  # fmt: skip
    assert len(DATA_PLANE) >= len(routes)


async def test_the_body_of_who_is_not_let_in_is_not_read(http):
    shaped(await http.post("/v1/chat/completions", content=b"{" * 50_000), 401, "invalid_api_key")
    shaped(await http.post("/v1/chat/completions", content=b"{" * 50_000, headers=bearer(SECRET)), 413, "request_too_large")


async def test_an_unforeseen_error_lets_nobody_in_and_keeps_its_shape(http, store):
    async def broken(secret):
        raise RuntimeError(secret)

    store.verify = broken
    message = shaped(await http.post("/v1/chat/completions", json=HELLO, headers=bearer(SECRET)), 500, None)
    assert SECRET not in message


async def test_a_key_uses_the_routes_it_is_for(http, store, engine, papers):
    narrowed(store, routes={"chat", "e5"})
    http.headers.update(bearer(SECRET))

    assert (await http.post("/v1/chat/completions", json=HELLO)).status_code == 200
    assert (await http.post("/v1/embeddings", json={"model": "e5", "input": "a"})).status_code == 200
    asked = len(engine.asked)
    refused = [
        await http.post("/v1/chat/completions", json={**HELLO, "model": "free"}),
        await http.post("/v1/chat/completions", json={**HELLO, "model": "free", "stream": True}),
        await http.post("/v1/completions", json={"model": "free", "prompt": "a"}),
        await http.post("/v1/rag/search", json={"model": "ask", "query": "a"}),
        await http.post("/v1/vector_stores/ask/search", json={"query": "a"}),
        await http.get("/v1/vector_stores/ask"),
        await http.get("/v1/rag/documents?model=ask"),
        await http.post("/v1/rag/documents", json={"model": "ask", "documents": [{"id": "a", "text": "b"}]}),
        await http.delete("/v1/rag/documents/a?model=ask"),
    ]
    for answer in refused:
        shaped(answer, 403, "forbidden")
    assert (len(engine.asked), papers.asked) == (asked, [])
    assert [card["id"] for card in (await http.get("/v1/models")).json()["data"]] == ["chat", "e5"]
    assert (await http.get("/v1/vector_stores")).json()["data"] == []
    shaped(await http.get("/v1/models/free"), 404, "model_not_found")
    # What is not there is not told with the names of what is not his.
    message = shaped(await http.post("/v1/chat/completions", json={**HELLO, "model": "gpt"}), 404, "model_not_found")
    assert message.endswith("there is: chat")
    message = shaped(await http.post("/v1/rag/search", json={"model": "chat", "query": "a"}), 400, "unsupported_endpoint")
    assert "ask" not in message


async def test_embeddings_are_for_keys_that_name_their_model(http, store):
    narrowed(store, routes={"chat"})
    answer = await http.post("/v1/embeddings", json={"model": "e5", "input": "a"}, headers=bearer(SECRET))

    shaped(answer, 403, "forbidden")


async def test_a_key_uses_the_adapters_it_is_for_and_routes_without_one(http, store, adapters):
    http.headers.update(bearer(SECRET))
    narrowed(store, adapters={"banking"})
    shaped(await http.post("/v1/chat/completions", json={**HELLO, "model": "travel"}), 403, "forbidden")
    shaped(await http.post("/v1/chat/completions", json={**HELLO, "model": "split"}), 403, "forbidden")
    assert (await http.post("/v1/chat/completions", json=HELLO)).status_code == 200
    assert adapters.asked == []
    assert "travel" not in [card["id"] for card in (await http.get("/v1/models")).json()["data"]]


async def test_a_keys_adapters_are_known_by_name_whatever_the_version(http, store):
    narrowed(store, adapters={"travel"})
    answers = [
        await http.post("/v1/chat/completions", json={**HELLO, "model": model}, headers=bearer(SECRET))
        for model in ("travel", "split", "chat")
    ]

    assert [answer.status_code for answer in answers] == [200] * 3


async def test_the_tenant_and_roles_of_a_key_reach_the_search_and_its_id_the_log(http, papers):
    with capture_logs() as logs:
        await http.post("/v1/chat/completions", json={**HELLO, "model": "ask"}, headers={**bearer(SECRET), "x-tenant": "globex"})

    assert [access for _, access in papers.asked] == [Access("acme", frozenset({"staff"}))]
    [line] = [line for line in logs if line["event"] == "request"]
    assert line["key"] == f"ek_{IDENTITY}"
    assert SECRET not in str(logs)
