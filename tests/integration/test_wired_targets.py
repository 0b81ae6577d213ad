"""What answers a route of the wired gateway: the queue to the box's own engine, and targets that fail in every way."""

import asyncio
import socket

import pytest

from services.backends import Backends
from targets.breaker import Breakers, BreakerSettings
from tests.serving import StandIn, engines, events_of, said, serving, until, written

QUEUE = """
queue: {capacity: CAPACITY, length: LENGTH, deadline_seconds: DEADLINE}
tenants: {"*": {}}
routes:
  chat: {prompt: plain, policy: open}
"""
TARGETS = """
audit: {enabled: true}
upstreams:
  a: {url: "URL_A", key: "${UPSTREAM_KEY}", health: /health}
  b: {url: "URL_B"}
routes:
  chat: {prompt: plain, policy: open, targets: {of: TWO, retries: 0, deadline_seconds: 2}}
  patient: {prompt: plain, policy: open, targets: {of: TWO, retries: 1}}
  weighted: {prompt: plain, policy: open, targets: {of: TWO, strategy: weighted}}
  busy: {prompt: plain, policy: open, targets: {of: TWO, strategy: least-busy}}
  cheap:
    prompt: plain
    policy: open
    targets: {of: [{upstream: a, model: big, price: {prompt: 9}}, {upstream: b, model: small}], strategy: cheapest}
  hard: {prompt: plain, policy: open, targets: {of: TWO, strategy: complexity, thresholds: [0.5]}}
  sticky: {prompt: plain, policy: open, targets: {of: TWO, strategy: affinity}}
  alone: {prompt: plain, policy: open, targets: {of: [{upstream: a, model: big}], retries: 0, deadline_seconds: 1}}
  sorry: {prompt: plain, policy: safe, targets: {of: [{upstream: a, model: big}], retries: 0, apology: "We are sorry."}}
  both: {prompt: plain, policy: open, targets: {of: [{}, {upstream: b, model: small}], retries: 0}}
queue: {capacity: 1, length: 0}
"""
TWO = "[{upstream: a, model: big}, {upstream: b, model: small}]"
SECRET = "sk-upstream-0123456789"


@pytest.fixture
def far(monkeypatch):
    """Two upstreams and the box's own engine, in a box whose routes name them."""
    monkeypatch.setenv("UPSTREAM_KEY", SECRET)


@pytest.fixture
async def world(tmp_path, far):
    async with engines(3) as [own, a, b]:
        a.pieces, b.pieces, own.pieces = ["from", " a"], ["from", " b"], ["own"]
        folder = written(tmp_path, TARGETS.replace("TWO", TWO).replace("URL_A", a.url).replace("URL_B", b.url))
        async with serving(folder, own.url) as box:
            yield box, own, a, b


async def text(box, model, *, stream=False, question="hi", **more):
    answer = await box.post(question, model=model, stream=stream, **more)
    assert answer.status_code == 200, answer.text
    return said(events_of(answer.text)) if stream else answer.json()["choices"][0]["message"]["content"]


# The queue


def queued(tmp_path, capacity, length, deadline=30):
    told = {"CAPACITY": capacity, "LENGTH": length, "DEADLINE": deadline}
    text = QUEUE
    for name, value in told.items():
        text = text.replace(name, str(value))
    return written(tmp_path, text)


async def test_no_more_are_at_the_engine_than_it_has_places(tmp_path):
    async with engines() as [engine], serving(queued(tmp_path, 3, 50), engine.url) as box:
        engine.pace = 0.01
        answers = await asyncio.gather(*(box.post(stream=number % 2 == 0) for number in range(20)))

        assert [answer.status_code for answer in answers] == [200] * 20
        assert engine.most_running == 3


async def test_who_finds_no_place_is_told_when_to_come_again(tmp_path):
    async with engines() as [engine], serving(queued(tmp_path, 1, 1, 0.5), engine.url) as box:
        engine.delay = 2
        asked = [asyncio.create_task(box.post(tenant=f"t{number}")) for number in range(3)]
        codes = sorted([(await one).status_code for one in asked])
        shed = next(one.result() for one in asked if one.result().status_code == 503)

        assert codes == [200, 503, 503]  # one has no place in the queue, one waits too long in it
        assert shed.json()["error"]["code"] == "overloaded"
        assert int(shed.headers["retry-after"]) >= 1
        assert box.metric("llm_queue_shed_total", reason="full") == 1
        assert box.metric("llm_queue_shed_total", reason="deadline") == 1


async def test_a_tenant_with_much_does_not_keep_out_one_with_little(tmp_path):
    async with engines() as [engine], serving(queued(tmp_path, 1, 100), engine.url) as box:
        engine.delay = 0.5
        order = []

        async def ask(tenant):
            await box.post(tenant, tenant=tenant)
            order.append(tenant)

        much = [asyncio.create_task(ask("much")) for _ in range(6)]
        await until(lambda: box.parts.pipeline.backends.admission.waiting == 5)
        await ask("little")
        await asyncio.gather(*much)

        assert order.index("little") <= 2


async def test_a_caller_who_leaves_the_queue_frees_his_place(tmp_path):
    async with engines() as [engine], serving(queued(tmp_path, 1, 1), engine.url) as box:
        engine.delay = 0.3
        admission = box.parts.pipeline.backends.admission
        first = asyncio.create_task(box.post())
        await until(lambda: engine.running)
        waiting = asyncio.create_task(box.post())
        await until(lambda: admission.waiting)
        waiting.cancel()
        await until(lambda: not admission.waiting)

        assert (await first).status_code == 200
        assert len(engine.asked) == 1
        assert (await box.post()).status_code == 200


async def test_leaving_in_mid_stream_frees_the_place_and_closes_the_engines_connection(tmp_path):
    async with engines() as [engine], serving(queued(tmp_path, 1, 0), engine.url) as box:
        engine.pieces, engine.pace = ["word"] * 1000, 0.01
        stream = await box.client().chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "x"}], stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: engine.left == 1)
        await until(lambda: box.parts.pipeline.backends.admission.running == 0)
        engine.pieces = ["done"]

        assert (await box.post()).status_code == 200


# Strategies


async def test_each_strategy_asks_whom_it_should(world):
    box, _own, a, b = world
    assert await text(box, "chat") == "from a"
    assert await text(box, "cheap") == "from b"
    assert {await text(box, "weighted", user="u7") for _ in range(10)} == {await text(box, "weighted", user="u7", stream=True)}
    assert {await text(box, "weighted", user=f"u{number}") for number in range(40)} == {"from a", "from b"}
    a.delay = b.delay = 0.3
    first = asyncio.create_task(text(box, "busy"))
    await until(lambda: a.running + b.running)
    assert {await text(box, "busy"), await first} == {"from a", "from b"}
    a.delay = b.delay = 0
    long = "The same beginning of a long prompt, again and again. " * 60
    assert len({await text(box, "sticky", question=f"{long} {number}") for number in range(6)}) == 1
    easy = await text(box, "hard", question="Say hello.")
    proof = (
        "Prove that there are infinitely many primes of the form 4k+3, and derive the asymptotic density by Dirichlet's theorem."
    )
    assert {easy, await text(box, "hard", question=proof)} == {"from a", "from b"}
    assert easy == "from a"


async def test_the_model_is_named_as_the_target_knows_it(world):
    box, _, a, _ = world
    await text(box, "chat")

    assert a.asked[0]["model"] == "big"
    assert a.auth == [f"Bearer {SECRET}"]


# What fails


async def test_a_key_of_an_upstream_is_sent_and_never_told(world, capsys):
    box, _, a, b = world
    for status in (401, 403):
        a.status, a.body = status, {"error": {"message": f"Incorrect API key provided: {SECRET}", "code": "invalid_api_key"}}
        answers = [await box.post(model="alone"), await box.post(model="alone", stream=True)]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert "key" not in answer.text.lower()
    a.status, a.breaks_after, a.event = 200, 1, {"error": {"message": f"Incorrect API key {SECRET}", "code": 401}}
    broken = await box.post(model="alone", stream=True)
    assert events_of(broken.text)[-1]["error"]["code"] == "engine_unavailable"
    out = capsys.readouterr()
    assert SECRET not in broken.text + out.out + out.err
    assert SECRET not in "".join(path.read_text() for path in box.settings.audit("box").iterdir())
    assert b.auth == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trouble", ["5xx", "429", "404", "refused", "slow", "no JSON", "role only"])
async def test_what_fails_before_its_first_token_is_followed_by_the_next(world, trouble, stream):
    box, _own, a, _b = world
    match trouble:
        case "5xx":
            a.status = 500
        case "404":
            a.status = 404
        case "429":
            a.status, a.headers = 429, {"retry-after": "7"}
        case "refused":
            box.parts.pipeline.backends.upstreams["a"]._base_url = f"http://127.0.0.1:{closed_port()}"
        case "slow":
            a.delay = 10
        case "no JSON":
            a.status, a.body = 200, None
            a.finish, a.breaks_after = "stop", 0
            a.pieces = ["x"]
            if not stream:
                a.status, a.body = 502, "<html>"
        case "role only":
            a.breaks_after, a.status = 0, 200 if stream else 503
    assert await text(box, "chat", stream=stream) == "from b"
    assert box.metric("llm_target_attempts_total", target="b/small", reason="answered") == 1
    reason = "late" if trouble == "slow" else "failed"
    assert box.metric("llm_target_attempts_total", target="a/big", reason=reason) == 1
    assert box.lines()[-1]["more"]["target"] == "b/small"
    assert box.lines()[-1]["prompt_tokens"] == 7  # what failed gave nothing, and is not charged
    await until(lambda: a.running == 0)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_target_that_asks_for_time_is_not_asked_again_and_its_time_is_passed_on(world):
    box, _, a, _b = world
    a.status, a.headers = 429, {"retry-after": "7"}
    assert await text(box, "patient") == "from b"
    assert len(a.asked) == 1
    answer = await box.post(model="alone")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


async def test_a_target_that_fails_is_asked_once_more(world):
    box, _, a, _b = world
    a.status = 500

    assert await text(box, "patient") == "from b"
    assert len(a.asked) == 2


async def test_after_the_first_token_nobody_else_is_asked(world):
    box, _, a, b = world
    a.breaks_after = 1
    answer = await box.post(model="chat", stream=True)

    events = events_of(answer.text)
    assert said(events) == "from"
    assert events[-1]["error"]["code"] == "engine_unavailable"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert b.asked == []
    assert box.metric("llm_target_attempts_total", target="a/big", reason="broken") == 1


async def test_a_long_stream_is_not_cut_by_the_deadline_for_its_first_token(world):
    box, _, a, _ = world
    a.pieces, a.pace = ["x"] * 14, 0.1  # the route gives a second

    assert await text(box, "alone", stream=True) == "x" * 14


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_request_is_told_and_not_tried_elsewhere(world, stream):
    box, _, a, b = world
    a.status, a.body = 400, {"error": {"message": "top_q is unknown", "param": "top_q"}}
    answer = await box.post(stream=stream)

    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "top_q is unknown")
    assert (len(a.asked), len(b.asked)) == (1, 0)
    assert box.metric("llm_target_attempts_total", target="a/big", reason="refused") == 1


async def test_an_own_engine_that_is_full_is_followed_by_the_next(world):
    box, own, _, b = world
    own.delay = 0.5
    first = asyncio.create_task(text(box, "both"))
    await until(lambda: own.running)

    assert await text(box, "both") == "from b"
    b.status = 500
    assert (await box.post(model="both")).json()["error"]["code"] == "engine_unavailable"
    assert await first == "own"


async def test_only_full_engines_are_told_as_such(tmp_path):
    routes = "queue: {capacity: 1, length: 0}\nroutes: {chat: {prompt: plain, policy: open, targets: {of: [{}], retries: 0}}}\n"
    async with engines() as [own], serving(written(tmp_path, routes), own.url) as box:
        own.delay = 0.5
        first = asyncio.create_task(box.post())
        await until(lambda: own.running)
        answer = await box.post()

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await first).status_code == 200


async def test_a_breaker_opens_and_closes(world):
    box, _, a, _b = world
    backends: Backends = box.parts.pipeline.backends
    settings = BreakerSettings(minimum_calls=3, open_seconds=0.3, probes=1, jitter=0)
    backends._breakers = Breakers(settings, told=box.parts.pipeline.telemetry.circuit)
    a.status = 500
    for _ in range(3):
        assert await text(box, "chat") == "from b"
    assert box.metric("llm_target_circuit_open", target="a/big") == 1
    for _ in range(3):
        assert await text(box, "chat", stream=True) == "from b"
    assert len(a.asked) == 3
    alone = await box.post(model="alone")
    assert (alone.status_code, alone.headers["retry-after"]) == (503, "1")

    a.status = 200
    await asyncio.sleep(0.35)
    assert await text(box, "chat") == "from a"
    assert box.metric("llm_target_circuit_open", target="a/big") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_apology_when_nothing_answers(world, stream):
    box, _, a, _ = world
    a.status = 500

    assert await text(box, "sorry", stream=stream) == "We are sorry."
    [line] = box.lines()
    assert (line["outcome"], line["more"]["target"], line["prompt_tokens"], line["completion_tokens"]) == ("ok", "apology", 0, 0)


async def test_an_ill_target_is_asked_last_before_its_first_request(world):
    box, _, a, _ = world
    a.healthy = False
    async with box.parts.pipeline.backends.watched(0.05):
        await asyncio.sleep(0.2)
        assert await text(box, "chat") == "from b"
        a.healthy = True
        await asyncio.sleep(0.2)
        assert await text(box, "chat") == "from a"


async def test_an_engine_that_stops_is_told_and_may_come_back(tmp_path):
    routes = "routes: {chat: {prompt: plain, policy: open}}\n"
    async with engines() as [engine]:
        port = int(engine.url.rpartition(":")[2])
    async with serving(written(tmp_path, routes), engine.url) as box:
        gone = await box.post()
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "engine_unavailable")
        async with StandIn().serving(port):
            assert (await box.post()).status_code == 200
