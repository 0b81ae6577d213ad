"""The activator before a real child process that is started and stopped hundreds of times: all are answered, none twice."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from deploy.activator import Activator, Front
from deploy.lifecycle import Limits
from deploy.serving import listening
from deploy.starters import ChildStarter
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
    print(f"{CYCLES} cycles, {sent} requests, {starts:.0f} starts; bursts came to: {dict(states)}")
