"""What the gateway's request layer adds to a request: `make bench-overhead`, or `python -m benchmarks.overhead --help`.

Chats of 20 words, whole and streamed (16 events), straight to a server that answers at once and through what stands before it:
ours (one uvicorn worker with services.api, without BentoML: keys, limits, budget, targets, cache, metrics, log and audit on, no
guards), `--bentoml` the same box by `bentoml serve`, and `--litellm` LiteLLM's proxy with one worker, a master key and no more.
Each server has one processor, the load and the stand-in another. No question is asked twice, so every look-up in the cache
misses and is kept. Sides take turns; added ms are differences of percentiles over all rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import proxies
from benchmarks.proxies import Front, NotStarted
from services.layout import this_machine
from services.measure import distinct_prompt

RESULTS = Path(__file__).parent / "results"
CLIENTS = (1, 8, 32)
WORDS = 16
_numbers = itertools.count()


@dataclass
class Side:
    """A server, and what was measured of it: seconds of each request by (streamed, clients), and requests a second by round."""

    name: str
    front: Front
    seconds: dict[tuple[bool, int], list[float]] = field(default_factory=dict)
    firsts: list[float] = field(default_factory=list)
    """Of streams, one at a time: seconds to the first byte."""
    rates: dict[tuple[bool, int], list[float]] = field(default_factory=dict)
    worked: dict[bool, float] = field(default_factory=dict)
    """Processor seconds, by whether streamed."""

    def ms(self, share: float, *, streamed: bool = False) -> float:
        """Return a percentile of one client's requests."""
        return _percentile(self.seconds[streamed, 1], share)

    def rate(self, clients: int, *, streamed: bool = False) -> float:
        """Return requests a second, the median over the rounds."""
        return statistics.median(self.rates[streamed, clients])


def _percentile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[min(int(len(ordered) * share), len(ordered) - 1)]


async def ask(session: aiohttp.ClientSession, front: Front, *, streamed: bool) -> tuple[float, float]:
    """Ask once; return seconds to the first byte of the answer and to its end."""
    words = distinct_prompt(0, next(_numbers), 20)
    body = {
        "model": front.model, "messages": [{"role": "user", "content": words}], "max_tokens": WORDS, "temperature": 0,
        "stream": streamed,
    }  # fmt: skip
    started, first, last = time.perf_counter(), 0.0, b""
    async with session.post(f"{front.url}/v1/chat/completions", json=body) as response:
        async for chunk in response.content.iter_any():
            first, last = first or time.perf_counter(), last[-64:] + chunk
        if response.status != 200 or (streamed and b"[DONE]" not in last):  # noqa: PLR2004
            raise RuntimeError(f"{front.url} answered {response.status}: {last[:500]!r}")
    return first - started, time.perf_counter() - started


async def load(front: Front, clients: int, requests: int, *, streamed: bool) -> tuple[list[tuple[float, float]], float]:
    """Put so many clients on a server, each asking again as soon as it is answered; return times and requests a second."""
    headers = {"authorization": f"Bearer {front.token}"} if front.token else {}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        left, found = iter(range(requests)), list[tuple[float, float]]()

        async def client() -> None:
            for _ in left:
                found.append(await ask(session, front, streamed=streamed))

        await ask(session, front, streamed=streamed)
        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return found, requests / (time.perf_counter() - started)


def measure(sides: list[Side], rounds: int, requests: int) -> None:
    """Measure in turns."""
    for side in sides:
        asyncio.run(load(side.front, 8, 100, streamed=False))  # warm
        asyncio.run(load(side.front, 8, 100, streamed=True))
    for number in range(rounds):
        for streamed in (False, True):
            for clients in CLIENTS:
                for side in sides[:: 1 if number % 2 == 0 else -1]:
                    before = side.front.processor_seconds()
                    found, rate = asyncio.run(load(side.front, clients, requests, streamed=streamed))
                    side.worked[streamed] = side.worked.get(streamed, 0.0) + side.front.processor_seconds() - before
                    side.seconds.setdefault((streamed, clients), []).extend(whole for _, whole in found)
                    side.rates.setdefault((streamed, clients), []).append(rate)
                    if streamed and clients == 1:
                        side.firsts.extend(first for first, _ in found)


def figures(side: Side, direct: Side) -> dict[str, float]:
    """Return what counts of one side."""
    told = {
        "added_ms_p50": side.ms(0.5) - direct.ms(0.5),
        "added_ms_p99": side.ms(0.99) - direct.ms(0.99),
        "stream_added_ms_p50": side.ms(0.5, streamed=True) - direct.ms(0.5, streamed=True),
        "stream_added_ms_p99": side.ms(0.99, streamed=True) - direct.ms(0.99, streamed=True),
        "stream_added_first_ms_p50": _percentile(side.firsts, 0.5) - _percentile(direct.firsts, 0.5),
        **{f"requests_per_second_{clients}": side.rate(clients) for clients in CLIENTS[1:]},
        **{f"streams_per_second_{clients}": side.rate(clients, streamed=True) for clients in CLIENTS[1:]},
        "processor_ms": 1000 * side.worked[False] / sum(len(side.seconds[False, clients]) for clients in CLIENTS),
        "stream_processor_ms": 1000 * side.worked[True] / sum(len(side.seconds[True, clients]) for clients in CLIENTS),
        "rss_mb": side.front.rss_mb(),
    }
    return {name: round(value, 2) for name, value in told.items()}


def main() -> None:
    """Measure, print, and print JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", type=Path, help="LiteLLM's executable, of an environment of its own")
    parser.add_argument("--bentoml", action="store_true", help="also through `bentoml serve`; needs `ekiben pack` before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=400, help="of each kind and number of clients in a round")
    chosen = parser.parse_args()
    me = psutil.Process()
    cores = me.cpu_affinity()
    load_cores, server_cores = cores[:1], cores[-1:]
    me.cpu_affinity(load_cores)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        direct = Side("direct", stack.enter_context(proxies.stand_in(cores[1:2] if len(cores) > 2 else load_cores)))  # noqa: PLR2004
        folders = [Path(name) / each for each in ("ours", "bentoml", "litellm")]
        for folder in folders:
            folder.mkdir()
        sides = [direct, Side("ours", stack.enter_context(proxies.ours(direct.front, folders[0], server_cores)))]
        missing: dict[str, str] = {}
        if chosen.bentoml:
            gateway = stack.enter_context(proxies.ours(direct.front, folders[1], server_cores, bentoml=True))
            sides.append(Side("bentoml", gateway))
        if chosen.litellm is None or not chosen.litellm.is_file():
            missing["litellm"] = "not installed"
        else:
            sides.append(
                Side("litellm", stack.enter_context(proxies.litellm(chosen.litellm, direct.front, folders[2], server_cores)))
            )
        measure(sides, chosen.rounds, chosen.requests)
        report: dict[str, Any] = {side.name: figures(side, direct) for side in sides[1:]} | missing
    report["direct"] = {
        "ms_p50": round(direct.ms(0.5), 2), "ms_p99": round(direct.ms(0.99), 2),
        **{f"requests_per_second_{clients}": round(direct.rate(clients), 1) for clients in CLIENTS[1:]},
    }  # fmt: skip
    lines = [f"{this_machine().cpu}, processors {cores}, {chosen.rounds} rounds of {chosen.requests}"]
    lines += [f"{name}: {told}" for name, told in report.items()]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except NotStarted as error:
        raise SystemExit(str(error)) from None
