"""The activator before a real child process that is started and stopped hundreds of times: all are answered, none twice."""

import asyncio
import contextlib
import json
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from typer.testing import CliRunner

from deploy.activator import Activator, Front
from deploy.lifecycle import Limits
from deploy.serving import listening
from deploy.starters import ChildStarter
from services.cli import app
from services.engine_process import free_port
from tests import sleepy

ROOT = Path(__file__).resolve().parents[2]
CYCLES = 200
IDLE = 0.05


class Box:
    """An activator on a port, before the upstream that starts in a moment."""

    def __init__(self, folder):
        self.port, self.upstream_port, self.file = free_port(), free_port(), folder / "asked"
        self.url, self.upstream = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.upstream_port}"
        self.file.touch()
        command = [sys.executable, "-S", "-E", str(ROOT / "tests" / "sleepy.py"), str(self.upstream_port), str(self.file)]
        self.command = [sys.executable, "-m", "services.child", *command]

    def asked(self):
        return Counter(self.file.read_text().split())

    @asynccontextmanager
    async def open(self, front=None, **limits):
        starter = ChildStarter(self.command)
        activator = Activator(
            Front(self.upstream, **(front or {})), starter, Limits(**{"idle": IDLE, "start": 20, "hold": 30, **limits})
        )
        async with (
            activator,
            listening(activator, ("127.0.0.1", self.port), None, drain_seconds=5),
            aiohttp.ClientSession() as client,
        ):
            yield activator, starter, client

    async def ask(self, client, identity, **more):
        """Ask, and return the status and the bytes; a stream's are checked against what the upstream sent."""
        async with client.post(f"{self.url}/v1/chat/completions", json={"id": identity, **more}) as response:
            return response.status, await response.read()


@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return Box(tmp_path)


async def until(true, seconds=10):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it does not come"
        await asyncio.sleep(0.005)


def sample(activator, name, **labels):
    return activator._metrics.registry.get_sample_value(name, labels)


async def test_two_hundred_cycles_of_idle_and_burst(box):
    """Half of the bursts come to who is asleep, half at about the moment when it is switched off."""
    chance, states, sent = random.Random(7), Counter(), 0
    async with box.open() as (activator, _, client):
        for cycle in range(CYCLES):
            if cycle % 2:
                await asyncio.sleep(IDLE + chance.uniform(-0.02, 0.02))
            else:
                await until(lambda: activator.life.state == "asleep")
            states[activator.life.state] += 1
            burst = [(f"{cycle}-{number}", bool(chance.getrandbits(1))) for number in range(chance.randint(1, 5))]
            answers = await asyncio.gather(*(box.ask(client, identity, stream=streamed) for identity, streamed in burst))
            sent += len(burst)
            for (identity, streamed), (status, body) in zip(burst, answers, strict=True):
                assert status == 200, body
                if streamed:
                    assert body == b"".join(sleepy.event(identity, number) for number in range(4)) + b"data: [DONE]\n\n"
                else:
                    assert json.loads(body) == {"id": identity, "text": "".join(sleepy.WORDS)}
        starts = sample(activator, "activator_starts_total", outcome="ready")
    asked = box.asked()

    assert (len(asked), set(asked.values())) == (sent, {1})
    assert starts > CYCLES / 2
    assert states["asleep"] >= CYCLES / 2
    assert states["stopping"], "no burst met the switch-off: the test shows nothing of it"
    print(f"{CYCLES} cycles, {sent} requests, {starts:.0f} starts; bursts came to: {dict(states)}")  # noqa: T201


async def test_one_killed_between_requests_is_started_for_the_next(box):
    async with box.open(idle=None) as (activator, starter, client):
        for number in range(3):
            assert (await box.ask(client, f"a{number}"))[0] == 200
            killed = psutil.Process(starter.pid)
            killed.kill()
            while killed.is_running() and killed.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)  # noqa: ASYNC251  the activator is not to see the end before the request
            status, body = await box.ask(client, f"b{number}")

            assert (status, json.loads(body)["id"]) == (200, f"b{number}")
            activator.life._failures = 0  # long ago
    assert set(box.asked().values()) == {1}


async def test_one_that_dies_in_mid_stream_ends_it_with_an_error_event(box):
    async with box.open(idle=None) as (_, _, client):
        status, body = await box.ask(client, "a", stream=True, dies_after=2, pace=0.1)
        again, _ = await box.ask(client, "b")

    *whole, error, rest = body.split(b"\n\n")
    assert (status, rest, again) == (200, b"", 200)
    assert b"\n\n".join([*whole, b""]) == sleepy.event("a", 0) + sleepy.event("a", 1)
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
    assert set(box.asked().values()) == {1}


async def test_one_that_cannot_start_is_tried_again_by_a_later_request(box, tmp_path, monkeypatch):
    sign = tmp_path / "broken"
    sign.touch()
    monkeypatch.setenv("SLEEPY_FAILS", str(sign))
    async with box.open(backoff=0.05) as (activator, _, client):
        refused = await asyncio.gather(*(box.ask(client, f"a{number}") for number in range(5)))
        sign.unlink()
        await asyncio.sleep(0.06)

        assert [status for status, _ in refused] == [503] * 5
        assert (await box.ask(client, "b"))[0] == 200
        assert sample(activator, "activator_starts_total", outcome="failed") == 1
    assert box.asked() == {"b": 1}


async def test_a_start_held_long_sends_comments_first(box):
    async with box.open(front={"keepalive_seconds": 0.03}) as (_, _, client):
        _, body = await box.ask(client, "a", stream=True, head_seconds=0.2)

    said = body.count(b": waiting\n\n")
    assert said >= 1
    assert body == b": waiting\n\n" * said + b"".join(sleepy.event("a", number) for number in range(4)) + b"data: [DONE]\n\n"


@pytest.fixture
def command(box):
    """The command as a user starts it; it says where it is ready."""
    started = []

    def run(*more):
        child = shlex.join(box.command[3:])
        arguments = ["--listen", f"127.0.0.1:{box.port}", "--upstream", box.upstream, "--command", child, *more]
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "activate", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


async def listens(url):
    async with aiohttp.ClientSession() as client, asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                return await (await client.get(f"{url}/health")).json()
            await asyncio.sleep(0.05)


def upstreams(box):
    """Processes that run the upstream of this box."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "services.cli" not in words and str(box.upstream_port) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_the_command_answers_and_leaves_nothing_behind(box, command, number):
    process = command("--idle-seconds", "60")
    assert await listens(box.url) == {"status": "ok", "upstream": "asleep"}
    async with aiohttp.ClientSession() as client:
        assert (await box.ask(client, "a"))[0] == 200
        assert (await listens(box.url))["upstream"] == "awake"
    assert len(upstreams(box)) == 1
    process.send_signal(number)
    status = await asyncio.to_thread(process.wait, 20)

    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    await until(lambda: not upstreams(box))


async def test_the_command_refuses_an_upstream_that_is_there_already(box):
    with socket.create_server(("127.0.0.1", box.upstream_port)):
        told = CliRunner().invoke(app, ["activate", "--upstream", box.upstream, "--command", "true"])

    assert (told.exit_code, "something answers at" in told.stderr) == (1, True)
