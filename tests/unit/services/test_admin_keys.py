"""The admin API of keys over a real SQLite file: who may, what it does, what it is sent."""

import time
from contextlib import asynccontextmanager

import httpx
import pytest
from structlog.testing import capture_logs

from accounts.database import open_database
from accounts.keys import KeyStore, NewKey
from services.api import EmbeddingModel, Parts, create_app
from services.auth import ADMIN_ROLE, Auth

TOKEN = "a-token-that-is-long-enough"
NEW = {"name": "app", "owner": "jane", "tenant": "acme"}
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
async def store(tmp_path):
    async with open_database(f"sqlite:///{tmp_path}/ekiben.db") as engine:
        yield KeyStore(engine)


@asynccontextmanager
async def box(pipeline, adapters, auth):
    @asynccontextmanager
    async def compose():
        yield Parts(pipeline, EmbeddingModel("e5", 1, None), 10_000, adapters, TOKEN, auth)

    app = create_app(compose)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://box") as client:
        yield client


@pytest.fixture
async def http(pipeline, adapters, store):
    async def opened():
        return store

    async with box(pipeline, adapters, Auth(opened)) as client:
        yield client


def shaped(answer, status, code):
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    return answer.json()["error"]


async def chat(http, secret):
    return (await http.post("/v1/chat/completions", json=HELLO, headers=bearer(secret))).status_code


async def test_the_life_of_a_key(http):
    made = (
        await http.post("/admin/keys", json={**NEW, "roles": ["staff"], "requests_per_minute": 60}, headers=bearer(TOKEN))
    ).json()
    secret, identity = made["secret"], made["id"]
    assert secret.startswith(identity)
    assert (made["roles"], made["requests_per_minute"], made["status"]) == (["staff"], 60, "active")
    assert await chat(http, secret) == 200

    answer = await http.post(f"/admin/keys/{identity}/rotate", headers=bearer(TOKEN))
    assert answer.headers["cache-control"] == "no-store"
    second = answer.json()["secret"]
    assert [await chat(http, text) for text in (secret, second)] == [401, 200]
    third = (await http.post(f"/admin/keys/{identity}/rotate", json={"grace_seconds": 60}, headers=bearer(TOKEN))).json()[
        "secret"
    ]
    assert [await chat(http, text) for text in (secret, second, third)] == [401, 200, 200]

    revoked = (await http.post(f"/admin/keys/{identity}/revoke", headers=bearer(TOKEN))).json()
    assert revoked["status"] == "revoked"
    assert "secret" not in revoked
    assert [await chat(http, text) for text in (second, third)] == [401, 401]  # at once, here

    listed = await http.get("/admin/keys", headers=bearer(TOKEN))
    assert [key["id"] for key in listed.json()["data"]] == [identity]
    for text in (secret, second, third):
        assert text[-43:] not in listed.text
    assert "digest" not in listed.text


async def test_a_key_of_the_admins_role_is_enough_and_another_is_not(http, store):
    admin = (await store.create(NewKey(**{**NEW, "roles": {ADMIN_ROLE}}))).secret
    app = (await store.create(NewKey(**NEW))).secret
    paths = [("GET", "/admin/keys"), ("POST", "/admin/keys"), ("POST", "/admin/keys/x/rotate"), ("POST", "/admin/keys/x/revoke")]
    paths += [("GET", "/admin/adapters"), ("POST", "/admin/adapters/load")]
    for method, path in paths:
        shaped(await http.request(method, path, json=NEW, headers=bearer(app)), 403, "forbidden")
        for headers in ({}, bearer("wrong"), bearer(admin[:-1] + "?")):
            shaped(await http.request(method, path, json=NEW, headers=headers), 401, "invalid_api_key")
    assert len(await store.list()) == 2

    assert (await http.post("/admin/keys", json=NEW, headers=bearer(admin))).status_code == 200
    assert await chat(http, admin) == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"), ({**NEW, "name": ""}, "name"), ({**NEW, "roles": "staff"}, "roles"), ({**NEW, "roles": [1]}, "roles.0"),
        ({**NEW, "requests_per_minute": "60"}, "requests_per_minute"),
        ({**NEW, "concurrency": True}, "concurrency"),
        ({**NEW, "budget_day": -1}, "budget_day"), ({**NEW, "expires_at": 5}, "expires_at"), ({**NEW, "id": "0" * 16}, "id"),
        ({**NEW, "tenant": "a\0"}, "tenant"), ([], "body"),
    ],
)  # fmt: skip
async def test_a_bad_body_names_the_field(http, store, body, param):
    answer = await http.post("/admin/keys", json=body, headers=bearer(TOKEN))

    assert shaped(answer, 400, None)["param"] == param
    assert await store.list() == []


@pytest.mark.parametrize("body", [{"grace_seconds": -1}, {"grace_seconds": 1e9}, {"grace": 1}, {"expires_at": time.time() - 9}])
async def test_a_bad_rotation_changes_nothing(http, store, body):
    made = await store.create(NewKey(**NEW))
    shaped(await http.post(f"/admin/keys/{made.key.prefix}/rotate", json=body, headers=bearer(TOKEN)), 400, None)

    assert await store.verify(made.secret) == made.key


async def test_what_is_not_there_or_has_ended(http, store):
    made = await store.create(NewKey(**NEW))
    await store.revoke(made.key.id)
    for identity in ("x", "0" * 16, f"ek_{'0' * 16}", made.secret):
        for change in ("rotate", "revoke"):
            answer = await http.post(f"/admin/keys/{identity}/{change}", headers=bearer(TOKEN))
            shaped(answer, 404, "key_not_found")
            assert identity not in answer.text or identity == "x"
    answer = await http.post(f"/admin/keys/{made.key.id}/rotate", headers=bearer(TOKEN))

    assert "is revoked; make a new one" in shaped(answer, 409, "key_refused")["message"]


async def test_a_box_without_a_database_says_so(pipeline, adapters):
    async with box(pipeline, adapters, Auth(anonymous=True)) as http:
        shaped(await http.get("/admin/keys", headers=bearer(TOKEN)), 503, "keys_unavailable")


async def test_the_log_says_who_changed_which_key(http, store):
    admin = await store.create(NewKey(**{**NEW, "roles": {ADMIN_ROLE}}))
    with capture_logs() as logs:
        made = (await http.post("/admin/keys", json=NEW, headers=bearer(admin.secret))).json()
        await http.post(f"/admin/keys/{made['id']}/revoke", headers=bearer(TOKEN))

    told = [(line["change"], line["key"], line["by"]) for line in logs if line["event"] == "key changed"]
    assert told == [("create", made["id"], admin.key.prefix), ("revoke", made["id"], "token")]
    assert made["secret"] not in str(logs)
    assert admin.secret not in str(logs)
