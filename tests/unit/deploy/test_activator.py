"""The proxy: what passes, what is said while a caller waits, and what a caller gets when the upstream is lost."""

import asyncio
import errno
import gzip
import json
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey

from deploy import activator, lifecycle
from deploy.activator import Activator, Front
from deploy.lifecycle import Limits, StartFailed
from deploy.serving import listening

ERROR = {"message": "bad", "type": "invalid_request_error", "param": None, "code": "x"}
STREAM = json.dumps({"stream": True}).encode()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.005)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Upstream:
    """A server in this process that is its own starter; `answer` is the handler of all but /health."""

    def __init__(self):
        self.port = free_port()
        self.answer = self.echo
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.failure = None
        self.leaves_running = self.listens = False
        self.seen = []
        self.gone = asyncio.Event()
        self._runner = None

    async def echo(self, request):
        body = await request.read()
        return web.json_response({"path": request.raw_path, "method": request.method, "headers": [*request.headers.items()],
                                  "body": body.decode()})  # fmt: skip

    async def _handle(self, request):
        if request.path == "/health":
            return web.Response()
        self.seen.append(f"{request.method} {request.raw_path}")
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.gone.set()
            raise

    async def running(self):
        return False

    async def start(self):
        if self.failure:
            raise StartFailed(self.failure)
        asyncio.get_running_loop().create_task(self._start())

    async def _start(self):
        await self.may_start.wait()
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.listens = True

    async def stop(self):
        self.listens = False
        if self._runner:
            await self._runner.cleanup()

    async def ended(self):
        await asyncio.Event().wait()

    async def close(self):
        await self.stop()


class Box:
    def __init__(self, **front):
        self.upstream, self.port = Upstream(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.front = Front(f"http://127.0.0.1:{self.upstream.port}", **{"keepalive_seconds": 0.02, **front})

    @asynccontextmanager
    async def open(self, *, awake=True, metrics_port=None, **limits):
        limits = Limits(**{"idle": None, "start": 5, "hold": 5, "stop": 1, **limits})
        self.activator = Activator(self.front, self.upstream, limits, metrics_apart=metrics_port is not None)
        apart = metrics_port and ("127.0.0.1", metrics_port)
        async with (
            self.activator,
            listening(self.activator, ("127.0.0.1", self.port), apart, drain_seconds=1),
            aiohttp.ClientSession(auto_decompress=False) as client,
        ):
            if awake:
                await (await client.get(f"{self.url}/")).read()
                self.upstream.seen.clear()
            yield client

    def sample(self, name, **labels):
        return self.activator._metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def box():
    return Box()


async def until(true):
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  whatever it is
            await asyncio.sleep(0.002)


async def raw(port, request):
    """All bytes of an answer on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_a_request_passes_as_it_is(box):
    async with box.open() as client:
        headers = {"Authorization": "Bearer k", "User-Agent": "me", "X-Custom": "ü".encode().decode("latin-1")}
        response = await client.put(f"{box.url}/v1/a%2Fb%20c?q=%C3%A9&q=2", data="駅弁".encode(), headers=headers)
        told = await response.json()

    got = {name.lower(): value for name, value in told["headers"]}
    assert (told["method"], told["path"], told["body"]) == ("PUT", "/v1/a%2Fb%20c?q=%C3%A9&q=2", "駅弁")
    assert (got["authorization"], got["user-agent"]) == ("Bearer k", "me")
    assert got["host"] == f"127.0.0.1:{box.port}"


async def test_who_asks_is_told_on_so_that_a_box_takes_nobody_for_its_own_machine(box):
    async with box.open() as client:
        plain = dict((await (await client.get(f"{box.url}/a")).json())["headers"])
        chained = dict((await (await client.get(f"{box.url}/a", headers={"X-Forwarded-For": "10.0.0.9"})).json())["headers"])

    assert (plain["X-Forwarded-For"], chained["X-Forwarded-For"]) == ("127.0.0.1", "10.0.0.9, 127.0.0.1")


async def test_what_is_of_one_connection_does_not_pass(box):
    async def answer(request):
        got = {name.lower() for name in request.headers}
        response = web.json_response(sorted(got), headers={"X-Hop": "1", "Keep-Alive": "timeout=5", "Connection": "X-Hop, close"})
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        return response

    async with box.open():
        box.upstream.answer = answer
        got = await raw(
            box.port,
            b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\n"
            b"Proxy-Authorization: p\r\nUpgrade: h2c\r\nX-End: 1\r\n\r\n",
        )

    head, _, body = got.partition(b"\r\n\r\n")
    assert {"x-mine", "te", "proxy-authorization", "upgrade"} & set(json.loads(body)) == set()
    assert "x-end" in json.loads(body)
    assert (b"X-Hop: 1" in head, b"Keep-Alive: timeout" in head, head.count(b"Set-Cookie")) == (False, False, 2)


@pytest.mark.parametrize(("status", "body"), [(204, b""), (304, b""), (404, b"{}"), (500, b"oh")])
async def test_any_status_passes(box, status, body):
    async def answer(_request):
        return web.Response(status=status, body=body, headers={"ETag": '"x"'})

    async with box.open() as client:
        box.upstream.answer = answer
        response = await client.get(f"{box.url}/a")

        assert (response.status, await response.read(), response.headers["ETag"]) == (status, body, '"x"')


async def test_a_head_has_the_length_and_no_body(box):
    async def answer(_request):
        return web.Response(body=b"12345")

    async with box.open():
        box.upstream.answer = answer
        got = await raw(box.port, b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b"Content-Length: 5\r\n" in got
    assert got.endswith(b"\r\n\r\n")


async def test_packed_bytes_and_redirects_are_left_to_the_caller(box):
    packed = gzip.compress(b"hello")

    async def answer(_request):
        return web.Response(status=302, body=packed, headers={"Content-Encoding": "gzip", "Location": "/b"})

    async with box.open() as client:
        box.upstream.answer = answer
        response = await client.post(f"{box.url}/a", data=packed, headers={"Content-Encoding": "gzip"}, allow_redirects=False)

        assert (response.status, await response.read(), response.headers["Location"]) == (302, packed, "/b")
    assert box.upstream.seen == ["POST /a"]


async def test_a_body_in_chunks_arrives_whole(box):
    async def pieces():
        for _ in range(3):
            yield b"abc"

    async with box.open() as client:
        told = await (await client.post(f"{box.url}/a", data=pieces())).json()

    assert told["body"] == "abcabcabc"
    assert dict(told["headers"])["Content-Length"] == "9"


async def test_a_body_that_is_too_long_wakes_nobody():
    box = Box(max_body_bytes=1000)
    async with box.open(awake=False) as client:
        response = await client.post(f"{box.url}/a", data=b"x" * 1001)
        error = (await response.json())["error"]

        assert (response.status, error["code"], error["type"]) == (413, "request_too_large", "invalid_request_error")
        assert box.activator.life.state == "asleep"
        assert box.sample("activator_refused_requests_total", reason="body_too_large") == 1
        assert (await client.post(f"{box.url}/a", data=b"x" * 1000)).status == 200


@pytest.mark.parametrize("target", [b"http://other/", b"*"])
async def test_only_paths_are_asked_for(box, target):
    async with box.open():
        got = await raw(box.port, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert got.split()[1] in {b"400", b"404"}
    assert box.upstream.seen == []


async def test_a_web_socket_is_refused(box):
    async with box.open() as client:
        response = await client.get(f"{box.url}/a", headers={"Upgrade": "websocket", "Connection": "Upgrade"})

    assert (response.status, box.upstream.seen) == (501, [])


async def test_health_wakes_nobody_and_metrics_too():
    box = Box(health_paths=frozenset({"/livez", "/readyz"}), quiet_paths=frozenset({"/metrics", "/v1/models"}))
    async with box.open(awake=False) as client:
        health = [await (await client.get(f"{box.url}{path}")).json() for path in ("/livez", "/readyz", "/activator/health")]
        metrics, models = await client.get(f"{box.url}/metrics"), await client.get(f"{box.url}/v1/models")
        own = await (await client.get(f"{box.url}/activator/metrics")).text()

        assert health == [{"status": "ok", "upstream": "asleep"}] * 3
        assert (metrics.status, await metrics.read(), models.status, models.headers["Retry-After"]) == (200, b"", 503, "5")
        assert 'activator_state{activator_state="asleep"} 1.0' in own
        assert box.activator.life.state == "asleep"
        await client.get(f"{box.url}/a")

        assert (await (await client.get(f"{box.url}/metrics")).json())["path"] == "/metrics"
        assert box.upstream.seen == ["GET /a", "GET /metrics"]


async def test_scrapes_keep_nobody_awake(box):
    async with box.open(idle=0.1) as client:
        async with asyncio.timeout(5):
            while box.activator.life.state == "awake":
                await (await client.get(f"{box.url}/metrics")).read()

        assert box.upstream.seen[0] == "GET /metrics"


async def test_metrics_may_have_a_port_of_their_own(box):
    port = free_port()
    async with box.open(metrics_port=port) as client:
        assert "activator_starts_total" in await (await client.get(f"http://127.0.0.1:{port}/metrics")).text()
        assert (await (await client.get(f"{box.url}/activator/metrics")).json())["path"] == "/activator/metrics", "passed on"


def events(pieces, *, broken=False, started=None):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.005)
        if started:
            await started.wait()
        if broken:
            request.transport.close()
        return response

    return answer


async def test_the_bytes_of_a_stream_pass_however_they_are_cut(box):
    whole = 'data: {"text": "駅弁 é 🍱"}\n\n'.encode()
    async with box.open() as client:
        box.upstream.answer = events([whole[start : start + 1] for start in range(len(whole))])
        response = await client.post(f"{box.url}/a", data=STREAM)

        assert (await response.read(), response.headers["Content-Type"]) == (whole, "text/event-stream; charset=utf-8")


async def test_the_first_event_does_not_wait_for_the_second(box):
    async with box.open() as client:
        box.upstream.answer = events([b"data: 1\n\n"], started=(more := asyncio.Event()))
        response = await client.post(f"{box.url}/a", data=STREAM)

        assert await asyncio.wait_for(response.content.readany(), 5) == b"data: 1\n\n"
        more.set()
        await response.read()


async def asleep(box, client, **more):
    """Ask for a stream while nobody is awake; the start goes on once comments were heard."""
    box.upstream.may_start.clear()
    response = await client.post(f"{box.url}/a", data=STREAM, **more)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    heard = await response.content.readexactly(2 * len(b": waiting\n\n"))
    assert heard == b": waiting\n\n" * 2
    box.upstream.may_start.set()
    return (await response.read()).replace(b": waiting\n\n", b"")


async def test_who_waits_for_a_stream_is_told_so(box):
    async with box.open(awake=False) as client:
        box.upstream.answer = events([b"data: 1\n\n", b"data: [DONE]\n\n"])

        assert await asleep(box, client) == b"data: 1\n\ndata: [DONE]\n\n"
    assert box.upstream.seen == ["POST /a"]


async def test_who_waits_for_no_stream_is_told_nothing(box):
    async with box.open(awake=False) as client:
        box.upstream.may_start.clear()
        asked = asyncio.create_task(client.post(f"{box.url}/a", data=b'{"stream": false}'))
        await asyncio.sleep(0.1)
        assert not asked.done()
        box.upstream.may_start.set()

        assert (await (await asked).json())["body"] == '{"stream": false}'


async def test_an_error_after_a_comment_is_an_event(box):
    async def answer(_request):
        return web.json_response({"error": ERROR}, status=400)

    async with box.open(awake=False) as client:
        box.upstream.answer = answer
        got = await asleep(box, client)

    assert json.loads(got.removeprefix(b"data: ")) == {"error": ERROR}
    assert got.endswith(b"\n\n")


async def test_what_is_no_stream_and_no_error_is_an_error_after_a_comment(box):
    async def answer(_request):
        return web.Response(text="<html>", status=502)

    async with box.open(awake=False) as client:
        box.upstream.answer = answer
        got = await asleep(box, client)

    assert json.loads(got.removeprefix(b"data: "))["error"]["message"] == "The engine answered with status 502, and no stream."


async def test_a_start_that_fails_after_a_comment_is_an_event(box):
    async with box.open(awake=False, start=1) as client:
        box.upstream.may_start.clear()
        response = await client.post(f"{box.url}/a", data=STREAM)
        got = (await response.read()).replace(b": waiting\n\n", b"")

    assert json.loads(got.removeprefix(b"data: "))["error"]["code"] == "engine_unavailable"
    assert box.sample("activator_refused_requests_total", reason="start_failed") == 1


async def test_a_start_that_fails_before_is_a_503_with_when_to_come_back(box):
    box.upstream.failure = "no such program"
    async with box.open(awake=False) as client:
        response = await client.post(f"{box.url}/a", data=STREAM)
        error = (await response.json())["error"]

    assert (response.status, response.headers["Retry-After"], error["code"]) == (503, "1", "engine_unavailable")
    assert "no such program" not in error["message"], "what is wrong here is for the log"


async def test_beyond_the_queue_it_is_a_503(box):
    async with box.open(awake=False, queue=1) as client:
        box.upstream.may_start.clear()
        first = asyncio.create_task(client.post(f"{box.url}/a", data=b"{}"))
        await until(lambda: box.sample("activator_waiting_requests") == 1)
        response = await client.post(f"{box.url}/a", data=b"{}")
        box.upstream.may_start.set()

        assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["Retry-After"]) >= 1
        assert (await first).status == 200


async def test_a_stream_that_breaks_ends_with_an_error_event(box):
    async with box.open() as client:
        box.upstream.answer = events([b"data: 1\n\n"], broken=True)
        got = await (await client.post(f"{box.url}/a", data=STREAM)).read()

    first, error, rest = got.split(b"\n\n")
    assert (first, rest, json.loads(error.removeprefix(b"data: "))["error"]["code"]) == (b"data: 1", b"", "engine_lost")
    assert box.sample("activator_refused_requests_total", reason="upstream_lost") == 1


async def test_a_stream_that_breaks_within_an_event_breaks(box):
    """Half an event and an error behind it would be one event that nobody can read."""
    async with box.open():
        box.upstream.answer = events([b'data: 1\n\ndata: {"te'], broken=True)
        got = await raw(box.port, b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + STREAM)

    assert b'data: {"te' in got
    assert not got.endswith(b"0\r\n\r\n")


async def test_an_answer_that_breaks_breaks(box):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        request.transport.close()
        return response

    async with box.open() as client:
        box.upstream.answer = answer
        response = await client.get(f"{box.url}/a")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_nothing_is_sent_twice(box, method):
    async def answer(request):
        request.transport.abort()
        return web.Response()

    async with box.open() as client:
        box.upstream.answer = answer
        response = await client.request(method, f"{box.url}/a", data=None if method == "GET" else b"x")

        assert (response.status, (await response.json())["error"]["code"]) == (502, "engine_lost")
    assert box.upstream.seen == [f"{method} /a"]


async def test_one_that_refuses_connections_is_started_again_and_the_request_sent_then(box):
    async with box.open() as client:
        await box.upstream.stop()
        response = await client.post(f"{box.url}/a", data=b"once")

        assert (response.status, (await response.json())["body"]) == (200, "once")
    assert box.upstream.seen == ["POST /a"]
    assert box.sample("activator_stops_total", reason="lost") == 1


def failing(monkeypatch, error, times=1):
    """Let the next requests to the upstream fail so; the others go through."""
    real, left = activator.send, iter(range(times))

    async def send(*asked):
        if next(left, None) is not None:
            raise error
        return await real(*asked)

    monkeypatch.setattr(activator, "send", send)


def of_host(kind, number):
    return kind(ConnectionKey("upstream", 1, False, True, None, None, None), OSError(number, "as it is"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM])
async def test_what_this_machine_lacks_is_no_fault_of_the_upstream(box, monkeypatch, number):
    async with box.open() as client:
        failing(monkeypatch, of_host(aiohttp.ClientConnectorError, number))
        refused = await client.post(f"{box.url}/a", data=b"{}")
        again = await client.post(f"{box.url}/a", data=b"{}")

        assert (refused.status, refused.headers["Retry-After"], again.status) == (503, "1", 200)
    assert box.sample("activator_refused_requests_total", reason="no_connection") == 1
    assert box.sample("activator_starts_total", outcome="ready") == 1


async def test_a_name_that_cannot_be_looked_up_ends_no_child(box, monkeypatch):
    async with box.open() as client:
        failing(monkeypatch, of_host(aiohttp.ClientConnectorDNSError, socket.EAI_AGAIN))
        refused = await client.post(f"{box.url}/a", data=b"{}")

        assert (refused.status, box.activator.life.state) == (503, "awake")
    assert box.sample("activator_starts_total", outcome="ready") == 1


@pytest.mark.parametrize("leaves_running", [True, False])
async def test_one_that_drops_connections_is_started_again_where_that_harms_nobody(box, monkeypatch, leaves_running):
    async with box.open() as client:
        box.upstream.leaves_running = leaves_running
        await box.upstream.stop()
        failing(monkeypatch, aiohttp.ConnectionTimeoutError())
        if not leaves_running:  # it answers in time
            await box.upstream.start()
            await until(lambda: box.upstream.listens)
        response = await client.post(f"{box.url}/a", data=b"once")

        assert (response.status, (await response.json())["body"]) == (200, "once")
    assert box.sample("activator_starts_total", outcome="ready") == (2 if leaves_running else 1)


async def test_who_is_held_since_the_upstream_was_found_dead_is_told_so(box):
    async with box.open() as client:
        await box.upstream.stop()
        box.upstream.answer = events([b"data: 1\n\n"])

        assert await asleep(box, client) == b"data: 1\n\n"


async def test_one_that_is_awake_and_slow_has_its_own_status(box):
    async def answer(_request):
        await asyncio.sleep(0.1)
        return web.json_response({"error": ERROR}, status=400)

    async with box.open() as client:
        box.upstream.answer = answer

        assert (await client.post(f"{box.url}/a", data=STREAM)).status == 400


async def test_a_caller_who_leaves_while_he_waits_is_forgotten(box):
    async with box.open(awake=False) as client:
        box.upstream.may_start.clear()
        asked = asyncio.create_task(client.post(f"{box.url}/a", data=b"{}"))
        await until(lambda: box.sample("activator_waiting_requests") == 1)
        asked.cancel()
        await until(lambda: box.sample("activator_in_flight_requests") == 0)
        box.upstream.may_start.set()
        await until(lambda: box.activator.life.state == "awake")

    assert box.upstream.seen == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_caller_who_leaves_closes_the_connection_to_the_upstream(box, streamed):
    async def answer(request):
        if streamed:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
        await asyncio.sleep(60)

    async with box.open() as client:
        box.upstream.answer = answer
        asked = asyncio.create_task(client.post(f"{box.url}/a", data=STREAM))
        await until(lambda: box.upstream.seen)
        if streamed:
            (await asked).close()
        asked.cancel()
        await asyncio.wait_for(box.upstream.gone.wait(), 5)
        await until(lambda: box.sample("activator_in_flight_requests") == 0)


async def test_a_caller_who_does_not_read_holds_the_upstream_back(box):
    piece, written = b"x" * 65_536, 0

    async def answer(request):
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        for _ in range(1600):
            await response.write(piece)
            written += len(piece)
        return response

    async with box.open():
        box.upstream.answer = answer
        reader, writer = await asyncio.open_connection("127.0.0.1", box.port, limit=65_536)
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: written > 0)
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.2)
        held, got = written, 0
        while chunk := await reader.read(2**20):
            got += len(chunk)
        writer.close()

    assert held < 40 * 2**20, "the system's own buffers hold some"
    assert got > written == 1600 * len(piece)


async def test_while_it_ends_requests_under_way_are_answered(box):
    async def answer(_request):
        await asyncio.sleep(0.1)
        return web.Response(text="done")

    async with aiohttp.ClientSession() as own:
        async with box.open():
            box.upstream.answer = answer
            asked = asyncio.create_task(own.get(f"{box.url}/a"))
            await until(lambda: box.upstream.seen)
        response = await asked

        assert (response.status, await response.text()) == (200, "done")


async def test_while_it_ends_who_still_waits_is_answered(box):
    async with aiohttp.ClientSession() as own:
        async with box.open(awake=False):
            box.upstream.may_start.clear()
            asked = asyncio.create_task(own.post(f"{box.url}/a", data=b"{}"))
            await until(lambda: box.sample("activator_waiting_requests") == 1)
            asyncio.get_running_loop().call_later(0.1, box.upstream.may_start.set)

        assert (await asked).status == 200


@pytest.mark.parametrize(("drain_seconds", "each"), [(30, 15), (0, 0.01)])
async def test_requests_have_no_longer_than_the_drain(box, monkeypatch, drain_seconds, each):
    """It waits twice for a request under way, and for ever with a time-out of 0."""
    given = []

    class Runner(web.AppRunner):
        def __init__(self, *asked, **more):
            given.append(more["shutdown_timeout"])
            super().__init__(*asked, **more)

    monkeypatch.setattr(web, "AppRunner", Runner)
    async with listening(Activator(box.front, box.upstream), ("127.0.0.1", box.port), None, drain_seconds=drain_seconds):
        pass

    assert given == [each]


async def test_without_a_drain_a_stream_is_cut(box):
    async with aiohttp.ClientSession() as own, Activator(box.front, box.upstream) as made:
        async with asyncio.timeout(5), listening(made, ("127.0.0.1", box.port), None, drain_seconds=0):
            box.upstream.answer = events([b"data: 1\n\n"], started=asyncio.Event())
            response = await own.post(f"{box.url}/a", data=STREAM)
            await response.content.readuntil(b"data: 1\n\n")

        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
