"""The admin API over real slots: nothing without the token, and every mistake is told in OpenAI's shape."""

import json
import math
from contextlib import asynccontextmanager

import httpx
import pytest

from services.api import EmbeddingModel, Parts, create_app
from services.auth import Auth

TOKEN = "a-token-that-is-long-enough"
ONE, TWO = "1" * 16, "2" * 16
CHANGES = ("load", "unload", "promote", "rollback")
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def stored(library):
    library.put("a", ONE, TWO)


@asynccontextmanager
async def box(pipeline, slots, token):
    async def embed(text, kind):
        return [1.0], 1

    @asynccontextmanager
    async def compose():
        yield Parts(pipeline, EmbeddingModel("e5", 1, embed), 10_000, slots, token, Auth(anonymous=True))

    app = create_app(compose)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://box") as client:
        yield client


@pytest.fixture
async def slots(state_file, lora_engine, library):
    """The slots' metrics are not of interest here, and the pipeline has the registry."""
    from prometheus_client import CollectorRegistry

    from services.slots import Slots
    from services.telemetry import Telemetry

    slots = Slots(state_file, lora_engine, library.shelf(), Telemetry(CollectorRegistry()), capacity=2)
    state_file.change(lambda state: state.packed({"a": ONE}))
    await slots.reconcile()
    return slots


@pytest.fixture
async def http(pipeline, slots):
    async with box(pipeline, slots, TOKEN) as client:
        client.headers.update(BEARER)
        yield client


async def change(http, what, **body):
    return await http.post(f"/admin/adapters/{what}", json=body)


def shaped(response, status, code=None):
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
    return response.json()["error"]


# Who may


@pytest.mark.parametrize(
    "header",
    [
        None, "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}", f"Bearer x{TOKEN}", f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN[0]}",
    ],
)  # fmt: skip
async def test_nothing_without_the_whole_token(pipeline, slots, lora_engine, state_file, header):
    before, calls = state_file.read(), list(lora_engine.calls)
    headers = {} if header is None else {"authorization": header}
    async with box(pipeline, slots, TOKEN) as client:
        answers = [await client.get("/admin/adapters", headers=headers)]
        body = {"adapter": f"a@{TWO}"}
        answers += [await client.post(f"/admin/adapters/{what}", json=body, headers=headers) for what in CHANGES]

    for answer in answers:
        error = shaped(answer, 401, "invalid_api_key")
        assert error["message"] == "Send the admin token as Authorization: Bearer TOKEN."
        assert "a@" not in answer.text
    assert (state_file.read(), lora_engine.calls) == (before, calls)


@pytest.mark.parametrize("header", [None, "Bearer ", "Bearer None", f"Bearer {TOKEN}"])
async def test_a_box_without_a_token_lets_nobody_in(pipeline, slots, header):
    headers = {} if header is None else {"authorization": header}
    async with box(pipeline, slots, None) as client:
        answers = [await client.get("/admin/adapters", headers=headers)]
        answers += [await client.post(f"/admin/adapters/{what}", content=b"", headers=headers) for what in CHANGES]

    for answer in answers:
        assert "start the box with EKIBEN_ADMIN_TOKEN" in shaped(answer, 401, "invalid_api_key")["message"]


async def test_bearer_may_be_written_in_small_letters(pipeline, slots):
    async with box(pipeline, slots, TOKEN) as client:
        assert (await client.get("/admin/adapters", headers={"authorization": f"bearer {TOKEN}"})).status_code == 200


async def test_the_data_plane_needs_no_token(pipeline, slots):
    async with box(pipeline, slots, TOKEN) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_wrong_token_is_told_before_a_wrong_body(pipeline, slots):
    async with box(pipeline, slots, TOKEN) as client:
        shaped(await client.post("/admin/adapters/load", content=b"{" * 100_000), 401, "invalid_api_key")


# What it does


async def test_the_overview(http):
    response = await http.get("/admin/adapters")

    assert response.status_code == 200
    assert response.json()["capacity"] == 2
    [slot] = response.json()["slots"]
    assert (slot["adapter"], slot["aliases"], slot["ready"]) == (f"a@{ONE}", ["live"], True)


async def test_load_promote_rollback_unload(http, lora_engine, slots):
    answer = (await change(http, "load", adapter=f"a@{TWO}", pin=True)).json()
    assert answer["adapter"] == f"a@{TWO}"
    assert {slot["adapter"]: slot["pinned"] for slot in answer["slots"]} == {f"a@{ONE}": False, f"a@{TWO}": True}
    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}"}

    answer = (await change(http, "promote", adapter=f"a@{TWO}")).json()  # to live, unless told
    assert answer["adapters"]["a"] == {"aliases": {"live": TWO}, "history": {"live": [ONE]}}
    assert slots.choose({"a": 1.0}, None).label == f"a@{TWO}"
    answer = (await change(http, "promote", adapter=f"a@{ONE}", alias="old")).json()
    assert answer["adapters"]["a"]["aliases"] == {"live": TWO, "old": ONE}

    answer = (await change(http, "rollback", adapter="a")).json()
    assert answer["adapter"] == f"a@{ONE}"
    assert slots.choose({"a": 1.0}, None).label == f"a@{ONE}"

    answer = (await change(http, "unload", adapter=f"a@{TWO}")).json()
    assert [slot["adapter"] for slot in answer["slots"]] == [f"a@{ONE}"]
    assert lora_engine.names == {f"a@{ONE}"}


async def test_refusals_are_409_with_the_remedy(http, lora_engine, library):
    lora_engine.spoilt[f"a@{TWO}"] = math.nan
    refusals = [
        (("load", f"a@{TWO}"), "no finite probabilities; train it again"),
        (("load", f"a@{'f' * 16}"), "`ekiben adapter add` puts it there"),
        (("load", f"z@{ONE}"), "the bundle has no adapter named 'z'"),
        (("unload", f"a@{ONE}"), "promote another version first"),
        (("unload", f"a@{TWO}"), "is not loaded"),
        (("rollback", "a"), "promote one instead of rolling back"),
    ]
    for (what, adapter), says in refusals:
        error = shaped(await change(http, what, adapter=adapter), 409, "adapter_refused")
        assert says in error["message"]
    lora_engine.spoilt.clear()
    library.put("a", "3" * 16)
    await change(http, "load", adapter=f"a@{TWO}", pin=True)
    error = shaped(await change(http, "load", adapter=f"a@{'3' * 16}"), 409, "adapter_refused")
    assert "all 2 slots" in error["message"]


async def test_no_engine_is_a_503_with_retry_after(http, lora_engine):
    lora_engine.up = False
    response = await change(http, "load", adapter=f"a@{TWO}")

    shaped(response, 503, "engine_unavailable")
    assert response.headers["retry-after"] == "5"


# What it is sent


@pytest.mark.parametrize(
    ("what", "body", "param"),
    [
        ("load", b"", "body"), ("load", b"{", "body"), ("load", b"[]", "body"), ("load", b'"a"', "body"),
        ("load", b'{"adapter": "\xff"}', "body"),
        ("load", b"{}", "adapter"), ("unload", b"{}", "adapter"), ("promote", b"{}", "adapter"), ("rollback", b"{}", "adapter"),
        ("load", {"adapter": 3}, "adapter"), ("load", {"adapter": "../a"}, "adapter"), ("load", {"adapter": "a@b@c"}, "adapter"),
        ("load", {"adapter": "a\n"}, "adapter"), ("load", {"adapter": f"a@{ONE}", "pin": "yes"}, "pin"),
        ("load", {"adapter": f"a@{ONE}", "pin": 1}, "pin"), ("load", {"adapter": f"a@{ONE}", "alias": "x"}, "alias"),
        ("unload", {"adapter": f"a@{ONE}", "pin": True}, "pin"), ("promote", {"adapter": "a", "alias": "Live"}, "alias"),
        ("promote", {"adapter": "a", "alias": ""}, "alias"), ("promote", {"adapter": "a", "alias": "a@b"}, "alias"),
        ("rollback", {"adapter": "a", "alias": None}, "alias"), ("rollback", {"adapter": "a", "colour": 1}, "colour"),
    ],
)  # fmt: skip
async def test_a_bad_body_names_the_field(http, state_file, what, body, param):
    before = state_file.read()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = shaped(await http.post(f"/admin/adapters/{what}", content=content), 400)

    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")
    assert state_file.read() == before


async def test_a_body_that_is_too_large(http):
    response = await http.post("/admin/adapters/load", content=b'{"adapter": "' + b"a" * 70_000 + b'"}')

    assert response.status_code in {400, 413}
    assert "The body is over 65536 bytes" in response.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_told_as_on_the_data_plane(http):
    response = await http.post("/admin/adapters/load", content=b'{"adapter": "' + b"a" * 70_000 + b'"}')
    shaped(response, 413, "request_too_large")


async def test_an_alias_that_looks_like_a_version_is_refused(http):
    response = await change(http, "promote", adapter=f"a@{TWO}", alias="deadbeefdeadbeef")
    assert response.status_code == 400


async def test_an_unforeseen_error_is_told_in_the_same_shape(http, state_file, monkeypatch):
    def full(_how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_file, "change", full)
    response = await change(http, "load", adapter=f"a@{TWO}")
    assert response.status_code >= 500
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_wrong_methods_and_paths(http):
    assert (await http.post("/admin/adapters")).status_code == 405
    assert (await http.get("/admin/adapters/load")).status_code == 405
    assert (await change(http, "format", adapter="a")).status_code == 404


async def test_the_log_names_the_change_and_never_the_token(pipeline, slots, capsys, caplog):
    wrong = "another-token-that-is-wrong"
    async with box(pipeline, slots, TOKEN) as client:
        await client.post("/admin/adapters/load", json={"adapter": f"a@{TWO}"}, headers={"authorization": f"Bearer {wrong}"})
        await client.post("/admin/adapters/load", json={"adapter": f"a@{TWO}"}, headers=BEARER)
        await client.post("/admin/adapters/load", json={"adapter": 3}, headers=BEARER)
        await client.get("/admin/adapters", headers=BEARER)
    out, err = capsys.readouterr()
    logged = out + err + caplog.text

    assert f"a@{TWO}" in logged
    assert TOKEN not in logged
    assert wrong not in logged
