"""Real vLLM behind the activator: asleep, started by a burst of requests, idle, asleep again."""

import asyncio
import time

import aiohttp
import pytest

from deploy.activator import Activator, Front
from deploy.lifecycle import Limits
from deploy.serving import listening
from deploy.starters import ChildStarter
from services.bundle import load_bundle
from services.engine import command, usable_cores, vllm_arguments, vllm_environment
from services.engine_process import free_port
from services.lock import read_lock
from services.settings import Settings
from services.store import stored_path
from tests.e2e.conftest import run_ekiben

CYCLES = 3
CHAT = {"model": "", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}


@pytest.fixture
def engine():
    """The command of the demo's engine, and the name of its model."""
    run_ekiben("pack")
    path = Settings().bundle
    bundle, lock, port = load_bundle(path).bundle, read_lock(path.with_suffix(".lock")), free_port()
    # A small KV cache and few threads: starts are looked at, beside whatever else runs.
    arguments = vllm_arguments(bundle, model=stored_path(lock.model), adapters={}, device="cpu", port=port, free_bytes=0)
    return command(arguments, vllm_environment("cpu", min(usable_cores(), 2))), f"http://127.0.0.1:{port}", bundle.model.name


async def ask(client, url, model, *, stream):
    async with client.post(f"{url}/v1/chat/completions", json={**CHAT, "model": model, "stream": stream}) as response:
        return response.status, await response.text()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # BentoML's
async def test_every_request_of_a_burst_is_answered_each_time(engine):
    words, upstream, model = engine
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    limits = Limits(idle=1, start=300, hold=300)
    activator = Activator(Front(upstream, keepalive_seconds=2), ChildStarter(words), limits)
    timeout, colds, warms, texts = aiohttp.ClientTimeout(total=320), [], [], []
    async with (
        activator,
        listening(activator, ("127.0.0.1", port), None, drain_seconds=10),
        aiohttp.ClientSession(timeout=timeout) as client,
    ):
        for _ in range(CYCLES):
            async with asyncio.timeout(60):
                while activator.life.state != "asleep":  # noqa: ASYNC110  another process ends
                    await asyncio.sleep(0.1)
            began = time.monotonic()
            answers = await asyncio.gather(*(ask(client, url, model, stream=bool(number % 2)) for number in range(4)))
            colds.append(time.monotonic() - began)
            began = time.monotonic()
            answers.append(await ask(client, url, model, stream=False))
            warms.append(time.monotonic() - began)
            texts += answers
        page = activator._metrics.registry.get_sample_value
        starts, mean = page("activator_starts_total", {"outcome": "ready"}), page("activator_start_seconds_sum") / CYCLES

    assert [status for status, _ in texts] == [200] * len(texts)
    assert all(": waiting" in text and "[DONE]" in text for _, text in texts if "chat.completion.chunk" in text)
    assert all("usage" in text for _, text in texts if "chat.completion.chunk" not in text)
    assert starts == CYCLES
    told = f"burst of 4 asleep {[round(s, 1) for s in colds]} s, one awake {[round(s, 2) for s in warms]} s"
    print(f"start {mean:.1f} s (mean of {CYCLES}); {told}")  # noqa: T201
