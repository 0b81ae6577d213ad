"""An engine for the length of one job: started on a free loopback port, waited for, and ended with all that it started.

`ekiben adapter eval`, `ekiben model tune` and the benchmarks measure real vLLM with it; what is served runs under BentoML.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

from services.child import end_group
from services.engine import command
from services.engine_client import EngineClient


class EngineFailed(RuntimeError):
    """The engine did not start; the message ends with what it said last."""


@dataclass(frozen=True)
class RunningEngine:
    """An engine that answers: its base URL, a client of it, its process, and the seconds that it took to start."""

    url: str
    client: EngineClient
    pid: int
    start_seconds: float

    def memory_bytes(self) -> int:
        """Return the proportional share of memory that its processes hold together, in bytes."""
        total = 0
        for process in (psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def engine_process(
    arguments: list[str], environment: dict[str, str], *, port: int, start_seconds: float = 600
) -> AsyncGenerator[RunningEngine]:
    """Run vLLM with these arguments (which name `port`) until the block is left; raises EngineFailed."""
    async with server_process(command(arguments, environment), port=port, start_seconds=start_seconds) as running:
        yield running


@asynccontextmanager
async def server_process(program: list[str], *, port: int, start_seconds: float = 600) -> AsyncGenerator[RunningEngine]:
    """Run what becomes an engine on `port`, and leads its process group, until the block is left; raises EngineFailed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        began = time.monotonic()
        child = subprocess.Popen(  # noqa: ASYNC220, S603  it returns at once; no shell
            program, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{port}"
            async with EngineClient(url) as client:
                while not await client.healthy():
                    if child.poll() is not None or time.monotonic() - began > start_seconds:
                        log.seek(0)
                        tail = "\n".join(log.read().splitlines()[-30:])
                        raise EngineFailed(f"the engine did not start in {time.monotonic() - began:.0f} s; it said last:\n{tail}")
                    await asyncio.sleep(0.25)
                yield RunningEngine(url, client, child.pid, time.monotonic() - began)
        finally:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, 20)
            end_group(child.pid)  # vLLM's engine core outlives its server
            child.wait()
