"""What stands before an engine, each as a server in its own process: our request layer, BentoML's Gateway, LiteLLM's proxy.

Ours has keys (SQLite), limits of the key, its tenant and the route (in memory), a budget, routing over two targets of which the
first is the engine, a cache of answers, metrics and the audit trail; its policy is open. LiteLLM has a master key and a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import os  # noqa: TID251  servers start from this environment
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp
import psutil
import yaml

from accounts.database import Database
from accounts.keys import KeyStore, NewKey
from services.child import end_group
from services.engine_process import free_port
from services.lock import Lock, read_lock

ROOT = Path(__file__).resolve().parents[1]
ROUTE = "chat"
MASTER_KEY = "sk-benchmark-0123456789"
PLENTY = 10**9
START_SECONDS = 120.0


class NotStarted(RuntimeError):
    """A server did not start; the message ends with what it said last."""


@dataclass(frozen=True)
class Front:
    """A server that answers: its base URL, the model's name there, its bearer token."""

    url: str
    model: str
    token: str = ""
    pid: int = 0

    def rss_mb(self) -> float:
        """Return the resident memory of its processes together, in MiB."""
        return sum(process.memory_info().rss for process in self._tree()) / 2**20

    def processor_seconds(self) -> float:
        """Return the processor time that its processes have taken so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._tree()))

    def _tree(self) -> list[psutil.Process]:
        return [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]


@contextmanager
def server(
    command: Sequence[str], health: str, *, cores: Sequence[int], environment: Mapping[str, str] | None = None
) -> Generator[int]:
    """Run a server on some processors until the block is left, and wait for `health`, a URL; raises NotStarted."""
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        os.sched_setaffinity(0, cores)  # of this thread, and inherited: not one of its threads begins elsewhere
        try:
            child = subprocess.Popen(  # noqa: S603  no shell
                [sys.executable, "-m", "services.child", *command],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )  # fmt: skip
        finally:
            os.sched_setaffinity(0, before)
        try:
            if not asyncio.run(_up(health, child)):
                log.seek(0)
                tail = "\n".join(log.read().splitlines()[-20:])
                raise NotStarted(f"{command[0]} did not start; it said last:\n{tail}")
            yield child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            end_group(child.pid)
            child.wait()


async def _up(url: str, child: subprocess.Popen[bytes]) -> bool:
    ends = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while child.poll() is None and time.monotonic() < ends:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    if response.ok or response.status == HTTPStatus.UNAUTHORIZED:  # it answers, and asks for a key
                        return True
            await asyncio.sleep(0.1)
    return False


def uvicorn(app: str, port: int) -> list[str]:
    """Return the command of one uvicorn worker, as BentoML starts them; no connection is closed while it rests."""
    return [
        sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port),
        "--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "300",
    ]  # fmt: skip


@contextmanager
def stand_in(cores: Sequence[int]) -> Generator[Front]:
    """Run the server that answers at once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with server(uvicorn("benchmarks.stand_in:app", port), f"{url}/health", cores=cores) as pid:
        yield Front(url, "stand-in", pid=pid)


@contextmanager
def ours(engine: Front, folder: Path, cores: Sequence[int], *, bentoml: bool = False) -> Generator[Front]:
    """Run the gateway before an engine: its request layer alone, or all of it as `bentoml serve` does."""
    environment = box(engine, folder)
    token = asyncio.run(new_key(f"sqlite:///{folder / 'state' / 'ekiben.db'}"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = uvicorn("benchmarks.request_layer:app", port)
    if bentoml:
        serve = ["-m", "bentoml", "serve", "services.gateway:Gateway"]
        command = [sys.executable, *serve, "--host", "127.0.0.1", "--port", str(port)]
    health = f"{url}/readyz" if bentoml else f"{url}/v1/models"
    with server(command, health, cores=cores, environment=environment) as pid:
        yield Front(url, ROUTE, token, pid)


@contextmanager
def litellm(executable: Path, engine: Front, folder: Path, cores: Sequence[int]) -> Generator[Front]:
    """Run LiteLLM's proxy, one worker, before an engine."""
    config = folder / "litellm.yaml"
    behind = {"model": f"openai/{engine.model}", "api_base": f"{engine.url}/v1", "api_key": "none"}
    told = {
        "model_list": [{"model_name": ROUTE, "litellm_params": behind}],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"num_retries": 0, "request_timeout": 600},
    }
    config.write_text(yaml.safe_dump(told), encoding="utf-8")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(executable), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Its list of prices comes with it; it must not wait for the network.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"}
    with server(command, f"{url}/health/liveliness", cores=cores, environment=environment) as pid:
        yield Front(url, ROUTE, MASTER_KEY, pid)


def box(engine: Front, folder: Path) -> dict[str, str]:
    """Write a bundle with everything on and its lock; return the environment that serves it."""
    limits = {"requests_per_minute": PLENTY, "tokens_per_minute": PLENTY, "concurrency": 10_000}
    route = {
        "prompt": "assistant", "policy": "open", "parameters": {"temperature": 0, "max_tokens": 256},
        "limits": limits, "price": {"prompt": 1, "completion": 2}, "cache": {"ttl_seconds": 600},
        "targets": {"of": [{}, {"upstream": "spare", "model": engine.model}]},
    }  # fmt: skip
    bundle = {
        "name": "benchmark",
        "model": {"name": engine.model, "source": "path:nowhere"},
        "prompts": {"assistant": {"path": str(ROOT / "prompts/templates/assistant.yaml")}},
        "policies": {"open": {"path": str(ROOT / "guards/policies/open.yaml")}},
        "callers": {"anonymous": False},
        "tenants": {"benchmark": {"limits": limits, "budget": {"day": PLENTY // 2, "month": PLENTY // 2}}},
        "upstreams": {"spare": {"url": engine.url}},
        "audit": {"enabled": True},
        "routes": {ROUTE: route},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(bundle, sort_keys=False), encoding="utf-8")
    # BentoML wants a model of its store; the request layer alone only names it.
    packed = ROOT / "bundle.lock"
    model = read_lock(packed).model if packed.exists() else "none:none"
    Lock(name="benchmark", model=model).write(folder / "bundle.lock")
    return {
        "EKIBEN_BUNDLE": str(folder / "bundle.yaml"), "EKIBEN_STATE_DIR": str(folder / "state"), "EKIBEN_ENGINE_URL": engine.url,
        "EKIBEN_AUDIT_KEY": "a secret of the benchmark", "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip


async def new_key(url: str) -> str:
    """Make an API key that has limits and a budget; return its secret."""
    new = NewKey(
        name="benchmark", owner="benchmark", tenant="benchmark", requests_per_minute=PLENTY, tokens_per_minute=PLENTY,
        concurrency=10_000, budget_day=PLENTY / 2, budget_month=PLENTY / 2,
    )  # fmt: skip
    async with aclosing(Database(url)) as database:
        return (await KeyStore(await database.engine()).create(new)).secret
