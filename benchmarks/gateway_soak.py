"""Streams through a served gateway for minutes, against a stand-in engine with a pace: `python -m benchmarks.gateway_soak`.

The gateway is a process of its own. Some callers leave in mid-stream, some are over their limits. Printed while it runs: what was
answered, and the gateway's memory. At the end: whether every request has its line in the audit trail, whether any tenant was let
in more often in a minute than its limit, and what was left at the engine. The last line is JSON; exit code 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from accounts.reading import Filter, read
from accounts.verify import verify
from services.engine_process import free_port
from services.settings import Settings
from tests.serving import StandIn, written

ROUTES = """
audit: {{enabled: true}}
queue: {{capacity: {capacity}, length: 512, deadline_seconds: 20}}
tenants:
  "*": {{limits: {{requests_per_minute: {limit}, concurrency: 20}}}}
routes:
  chat: {{prompt: plain, policy: safe, parameters: {{max_tokens: 40}}, price: {{prompt: 1, completion: 2}}}}
  again: {{prompt: plain, policy: safe, parameters: {{max_tokens: 40, temperature: 0}}, cache: {{ttl_seconds: 5}}}}
"""
MINUTE = 60.0
TICK_SECONDS = 10.0


class Soak:
    """Callers, and what they heard."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self.url, self.options, self.rng = url, options, random.Random(options.seed)  # noqa: S311
        self.heard: Counter[str] = Counter()
        self.ids: dict[str, str] = {}
        self.seconds: list[float] = []
        self.end = time.monotonic() + options.minutes * MINUTE

    async def caller(self, number: int, session: aiohttp.ClientSession) -> None:
        """Ask until the time is over."""
        tenant = f"t{number % self.options.tenants}"
        while time.monotonic() < self.end:
            model = "again" if self.rng.random() < self.options.repeated else "chat"
            word = self.rng.randrange(50) if model == "again" else self.rng.random()
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": f"Tell me of {word}."}]}
            began = time.monotonic()
            try:
                async with session.post(f"{self.url}/v1/chat/completions", json=body, headers={"x-tenant": tenant}) as answer:
                    identity = answer.headers["x-request-id"]
                    if answer.ok and self.rng.random() < self.options.leaving:
                        self.ids[identity] = "left"
                        answer.close()
                        self.heard["left"] += 1
                        continue
                    text = await answer.read()
            except aiohttp.ClientError as error:
                self.heard[type(error).__name__] += 1
                continue
            whole = text.endswith(b"data: [DONE]\n\n") and b'"error"' not in text
            self.ids[identity] = "ok" if answer.ok and whole else "refused" if answer.status == 429 else "error"  # noqa: PLR2004
            self.heard[str(answer.status) if whole else _code(text)] += 1
            if answer.ok:
                self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(self.rng.random() * self.options.pause)


def _code(text: bytes) -> str:
    """What went wrong, by the last event of a stream or the whole answer."""
    last = [part for part in text.split(b"\n\n") if b'"error"' in part]
    try:
        return str(json.loads(last[-1].removeprefix(b"data: "))["error"]["code"])
    except (IndexError, ValueError, KeyError, TypeError):
        return "cut"


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = written(Path(temporary), ROUTES.format(capacity=options.capacity, limit=options.limit))
        engine = StandIn()
        engine.pace, engine.pieces = options.pace, ["word "] * options.words
        async with engine.serving():
            port = free_port()
            command = [sys.executable, "-m", "tests.serving", str(folder), engine.url, str(port)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603, ASYNC220  our own program
            try:
                found = await _soaked(options, engine, psutil.Process(process.pid), f"http://127.0.0.1:{port}")
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait)
        trail = Settings(state_dir=folder / "state").audit("box")
        asked: Soak = found.pop("soak")
        return (
            found
            | _checked(asked, list(read(trail, Filter())), options.limit)
            | {"broken_chain": len(verify(trail, None).problems)}
        )


async def _soaked(options: argparse.Namespace, engine: StandIn, gateway: psutil.Process, url: str) -> dict[str, Any]:
    memory: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for _ in range(600):
            try:
                await (await session.get(f"{url}/v1/models")).read()
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        asked = Soak(url, options)
        callers = asyncio.gather(*(asked.caller(number, session) for number in range(options.streams)))
        while not callers.done():
            await asyncio.wait({asyncio.ensure_future(asyncio.shield(callers))}, timeout=TICK_SECONDS)
            memory.append(gateway.memory_info().rss / 2**20)
            print(f"{sum(asked.heard.values())} requests {dict(asked.heard)}, {memory[-1]:.0f} MiB", flush=True)
        await callers
        await asyncio.sleep(1)
        left = {"engine_running": engine.running, "gateway_files": gateway.num_fds()}
    waited = sorted(asked.seconds)
    return {
        "soak": asked, "minutes": options.minutes, "streams": options.streams, "heard": dict(asked.heard),
        "requests_per_second": round(sum(asked.heard.values()) / options.minutes / MINUTE, 1),
        "answer_seconds_p50": round(waited[len(waited) // 2], 3), "answer_seconds_p99": round(waited[int(len(waited) * 0.99)], 3),
        "memory_mib": {"first": round(memory[0]), "middle": round(memory[len(memory) // 2]), "last": round(memory[-1])},
        "engine_most_running": engine.most_running, **left,
    }  # fmt: skip


def _checked(asked: Soak, lines: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """What the trail says of what was heard, and of the limits."""
    outcomes = {line["id"]: line["outcome"] for line in lines}
    # Who left at the very end may have had the whole answer.
    fits = {"left": {"cancelled", "ok"}, "ok": {"ok"}, "refused": {"refused"}, "error": {"error"}}
    other = sum(outcomes[one] not in fits[told] for one, told in asked.ids.items() if one in outcomes)
    begun: defaultdict[str, list[float]] = defaultdict(list)
    for line in lines:
        if line["outcome"] != "refused":
            begun[line["tenant"]].append(datetime.fromisoformat(line["at"]).timestamp() - line["seconds"])
    over = 0
    for times in begun.values():
        times.sort()
        # Times in the trail are of milliseconds, and of another clock than the limits'.
        over += sum(after - before < MINUTE - 0.1 for before, after in zip(times, times[limit:], strict=False))
    return {
        "lines": len(lines),
        "lines_lost": len(asked.ids.keys() - outcomes.keys()),
        "other_outcome": other,
        "over_limit": over,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="how long (default: 5)")
    parser.add_argument("--streams", type=int, default=200, help="callers at once (default: 200)")
    parser.add_argument("--tenants", type=int, default=20, help="tenants that they are of (default: 20)")
    parser.add_argument("--limit", type=int, default=300, help="requests a minute of a tenant (default: 300)")
    parser.add_argument("--capacity", type=int, default=128, help="requests at the engine (default: 128)")
    parser.add_argument("--words", type=int, default=20, help="of an answer (default: 20)")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds between words (default: 0.05)")
    parser.add_argument("--pause", type=float, default=1.0, help="longest pause of a caller, in seconds (default: 1)")
    parser.add_argument("--leaving", type=float, default=0.05, help="share of callers who leave in mid-stream (default: 0.05)")
    parser.add_argument("--repeated", type=float, default=0.2, help="share of questions asked before (default: 0.2)")
    parser.add_argument("--seed", type=int, default=1)
    found = asyncio.run(soak(parser.parse_args()))
    print(json.dumps(found))
    wrong = ("lines_lost", "other_outcome", "over_limit", "broken_chain", "engine_running")
    sys.exit(any(found[name] for name in wrong))


if __name__ == "__main__":
    main()
