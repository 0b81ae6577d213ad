"""Limits and budgets of the wired gateway over HTTP: refused, told in headers, settled by what was used."""

import asyncio
import json

import openai
import pytest
from aiohttp import web
from typer.testing import CliRunner

from services.cli import app as cli
from tests.serving import ATTACK, engines, events_of, said, serving, until, written

LIMITED = """
audit: {enabled: true}
tenants:
  "*": {limits: {requests_per_minute: 3}}
  rich: {limits: {tokens_per_minute: 1000}}
  narrow: {limits: {concurrency: 1}}
routes:
  chat: {prompt: plain, policy: safe, parameters: {max_tokens: 50}, limits: {tokens_per_minute: 100000, requests_per_minute: 5}}
  other: {prompt: plain, policy: open, parameters: {max_tokens: 50}}
"""
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def engine():
    async with engines() as [engine]:
        yield engine


@pytest.fixture
async def box(tmp_path, engine):
    async with serving(written(tmp_path, LIMITED), engine.url) as box:
        yield box


async def test_requests_a_minute_of_any_tenant_are_refused_in_openais_shape(box, engine):
    client = box.client()
    for left in (2, 1, 0):
        answer = await client.chat.completions.with_raw_response.create(model="other", messages=HI)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="other", messages=HI)

    told = caught.value
    assert (told.type, told.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert 50 <= int(told.response.headers["retry-after"]) <= 60
    assert told.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(engine.asked) == 3
    assert box.metric("llm_rate_limited_total", subject="tenant", limit="requests") == 1
    assert (await box.post(model="other", tenant="another")).status_code == 200  # `*` is each tenant by itself


async def test_a_route_is_limited_for_all_tenants_together(box):
    codes = [(await box.post(tenant=f"t{number}")).status_code for number in range(6)]

    assert codes == [200] * 5 + [429]


async def test_limits_of_a_key_stand_beside_its_tenants(box):
    key = await box.key(tenant="rich", requests_per_minute=2)
    codes = [(await box.post(model="other", key=key)).status_code for _ in range(3)]

    assert codes == [200, 200, 429]
    assert (await box.post(model="other", key=await box.key(tenant="rich"))).status_code == 200


async def test_vectors_take_requests_and_tokens_of_tenant_and_key(box):
    """The stand-in counts a character as a token."""
    asked = {"json": {"model": "e5", "input": ["a" * 300, "b" * 300]}, "headers": {"x-tenant": "rich"}}
    answers = [await box.http.post(f"{box.url}/v1/embeddings", **asked) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert box.spent("tenant:rich")[1] == 1200
    key = await box.key(tenant="other", requests_per_minute=1)
    sent = {"json": {"model": "e5", "input": "a"}, "headers": {"authorization": f"Bearer {key}"}}
    assert [(await box.http.post(f"{box.url}/v1/embeddings", **sent)).status_code for _ in range(2)] == [200, 429]


async def test_a_judge_waits_its_turn_and_its_tokens_are_the_requests(tmp_path, engine):
    judged = "input: [{detector: judge, question: injection, action: block}]\n"
    routes = """
queue: {capacity: 1}
tenants: {acme: {limits: {tokens_per_minute: 1000}}}
routes: {chat: {prompt: plain, policy: judged, parameters: {max_tokens: 50}}}
policies: {judged: {path: judged.yaml}}
"""
    folder = written(tmp_path, routes, **{"judged.yaml": judged})
    bundle = folder / "bundle.yaml"
    bundle.write_text(bundle.read_text().replace("policies: {open: {path: open.yaml}, safe: {path: safe.yaml}}\n", ""))
    engine.pieces = ['{"attack": 0.1}']
    async with serving(folder, engine.url) as box:
        engine.delay = 0.05
        answers = await asyncio.gather(*(box.post() for _ in range(3)))

        assert [answer.status_code for answer in answers] == [200] * 3
        assert (len(engine.asked), engine.most_running) == (6, 1)
        assert box.spent("tenant:acme") == (0, 3 * 2 * 10, 0)
        assert answers[0].json()["usage"]["total_tokens"] == 10  # of the answer


async def test_requests_at_once(box, engine):
    engine.delay = 0.3
    first = asyncio.create_task(box.post(model="other", tenant="narrow"))
    await until(lambda: engine.running == 1)
    second = await box.post(model="other", tenant="narrow", stream=True)
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert "requests at once" in second.json()["error"]["message"]
    assert (await first).status_code == 200
    assert (await box.post(model="other", tenant="narrow")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_of_good_answers_and_tokens_by_usage(box, stream):
    answer = await box.post(model="other", tenant="rich", stream=stream)

    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000 - 50  # the estimate holds while it lasts
    assert box.spent("tenant:rich") == (0, 10, 0)


async def test_what_is_more_than_the_limit_alone_is_not_to_be_tried_again(box):
    answer = await box.post(model="other", tenant="rich", max_tokens=2000)

    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in answer.headers


async def test_a_stream_that_breaks_is_charged_for_what_came(box, engine):
    engine.breaks_after = 2
    answer = await box.post("x" * 300, model="other", tenant="rich", stream=True)

    assert said(events_of(answer.text)) == "One two"
    assert events_of(answer.text)[-1]["error"]["code"] == "engine_unavailable"
    _, tokens, running = box.spent("tenant:rich")
    assert 102 <= tokens <= 110  # the prompt by its length, and two pieces
    assert running == 0
    [line] = box.lines()
    assert (line["outcome"], line["completion_tokens"]) == ("error", 2)


@pytest.mark.parametrize("pieces", [0, 2])
async def test_a_caller_who_leaves_a_stream_pays_for_the_prompt_and_what_came(box, engine, pieces):
    engine.pace, engine.delay = (5, 0) if pieces else (0, 5)
    if pieces:
        engine.pace = 0.05
        engine.pieces = ["a", "b"] + ["c"] * 1000
    stream = await asyncio.wait_for(box.client(tenant="rich").chat.completions.create(model="other", messages=HI, stream=True), 5)
    count = 0
    if pieces:
        async for event in stream:
            count += bool(event.choices and event.choices[0].delta.content)
            if count == pieces:
                break
    await stream.close()
    await until(box.lines)

    [line] = box.lines()
    assert line["outcome"] == "cancelled"
    assert pieces <= line.get("completion_tokens", 0) <= pieces + 3
    assert line["prompt_tokens"] > 0
    assert box.spent("tenant:rich") == (0, line["prompt_tokens"] + line.get("completion_tokens", 0), 0)
    await until(lambda: engine.running == 0)
    assert engine.left == 1


async def test_a_caller_who_leaves_a_whole_answer_pays_for_the_prompt(box, engine):
    engine.delay = 5
    task = asyncio.create_task(box.post(model="other", tenant="rich"))
    await until(lambda: engine.running)
    task.cancel()
    await until(box.lines)

    [line] = box.lines()
    assert line["outcome"] == "cancelled"
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] == 0
    await until(lambda: engine.left == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_with_another_key_is_away_and_says_nothing_to_callers(box, engine, stream):
    engine.status, engine.body = 401, {"error": {"message": "Unauthorized: wrong key abc", "type": "x", "code": 401}}
    answer = await box.post(model="other", stream=stream)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "abc" not in answer.text


async def test_an_engine_that_does_not_count_is_counted(box, engine):
    engine.usage = None
    await box.post(model="other", tenant="rich", stream=True)
    await box.post(model="other", tenant="rich")

    assert [line["completion_tokens"] for line in box.lines()] == [3, 5]


@pytest.mark.parametrize("usage", [{"prompt_tokens": -5}, {"completion_tokens": "many"}, "none", {"prompt_tokens_details": 3}])
async def test_counts_that_cannot_be_do_no_harm(box, engine, usage):
    engine.usage = usage

    assert (await box.post(model="other", tenant="rich")).status_code == 200
    assert (await box.post(model="other", tenant="rich", stream=True)).text.endswith("data: [DONE]\n\n")


async def test_what_never_reached_an_engine_is_charged_no_tokens(box, engine):
    refused = await box.post(ATTACK, tenant="rich")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
    engine.status = 500
    assert (await box.post(model="other", tenant="rich")).status_code == 503

    assert box.spent("tenant:rich") == (0, 0, 0)
    assert [line.get("prompt_tokens", 0) for line in box.lines()] == [0, 0]


# Budgets

PRICED = """
audit: {enabled: true}
tenants: {acme: {budget: {day: 0.001}}}
upstreams: {far: {url: "URL"}}
routes:
  chat: {prompt: plain, policy: open, parameters: {max_tokens: 10}, price: {prompt: 10, cached: 1, completion: 20}}
  far:
    prompt: plain
    policy: open
    parameters: {max_tokens: 10}
    price: {prompt: 1}
    targets: {of: [{upstream: far, model: big, price: {prompt: 30, completion: 40}}]}
"""


@pytest.fixture
def database(request, tmp_path):
    return f"sqlite:///{tmp_path}/e.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
async def test_a_budget_is_told_at_its_soft_share_and_stops_when_it_is_spent(tmp_path, engine, database, monkeypatch):
    posted = []

    async def hook(request):
        posted.append(await request.json())
        return web.Response()

    heard = web.Application()
    heard.router.add_post("/hook", hook)
    runner = web.AppRunner(heard)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    webhook = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"
    tenant = f"acme{abs(hash(database)) % 1000}"
    folder = written(tmp_path, PRICED.replace("URL", engine.url).replace("{acme:", f"{{{tenant}:"))
    async with serving(folder, engine.url, database_url=database, alert_webhook=webhook) as box:
        engine.usage = {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 10}}
        codes = []
        while codes[-1:] != [429]:  # each costs 10*10 + 10*1 + 5*20 = 210 of 1000 micros
            answer = await box.post(tenant=tenant, stream=len(codes) == 1)
            codes.append(answer.status_code)
        assert codes == [200, 200, 200, 200, 429]
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        assert answer.headers["x-should-retry"] == "false"
        assert (await box.post(tenant="others")).status_code == 200
        assert [line.get("micros", 0) for line in box.lines()] == [210] * 4 + [0, 210]
        assert box.metric("llm_cost_currency_total", model="chat") == pytest.approx(5 * 210e-6)
        await until(lambda: posted)
        await asyncio.sleep(0.6)  # two turns of the ledger: it is told once
        assert [(one["kind"], one["name"], one["level"]) for one in posted] == [("tenant", tenant, "soft")]
        assert box.metric("llm_budget_alerts_total", kind="tenant", level="soft") == 1
        assert box.metric("llm_budget_refusals_total", subject="tenant") == 1
        await box.post(model="far", tenant="others")
        assert box.lines()[-1]["micros"] == 20 * 30 + 5 * 40  # the target's price, which has no cheaper one for the cache

    await runner.cleanup()
    monkeypatch.setenv("EKIBEN_DATABASE_URL", database)
    printed = await asyncio.to_thread(CliRunner().invoke, cli, ["usage", "--by", "tenant,route", "--json"])
    rows = {(row["tenant"], row["route"]): row for row in json.loads(printed.stdout)["rows"]}
    assert (rows[tenant, "chat"]["micros"], rows[tenant, "chat"]["requests"]) == (4 * 210, 4)
    assert rows["others", "far"]["micros"] == 800


async def test_a_dear_target_is_reserved_at_its_price(tmp_path, engine):
    """The prompt is estimated at a handful of tokens, the answer at ten of 40 micros: over 400 of a budget of 400."""
    folder = written(tmp_path, PRICED.replace("URL", engine.url).replace("0.001", "0.0004"))
    async with serving(folder, engine.url) as box:
        assert (await box.post(model="far")).status_code == 429
        assert (await box.post()).status_code == 200
