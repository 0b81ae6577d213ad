"""What one hold costs, taken and settled, of a key, a tenant and a route with every kind of limit: `python -m benchmarks.limits`.

In memory, and with --redis on a Redis server (or one that is started here where redis-server is installed), one hold after
the other and with --streams at a time. Also what a place at the engine costs. Milliseconds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager

from accounts.admission import Admission
from accounts.rates import Limits, Rates, Subject, open_rates
from services.engine_process import free_port

MOST = Limits(10_000_000, 1_000_000_000, 10_000)


def subjects(number: int) -> list[Subject]:
    """Return those of a request: 100 keys of 20 tenants."""
    return [Subject("key", str(number % 100), MOST), Subject("tenant", str(number % 20), MOST), Subject("route", "chat", MOST)]


async def holds(rates: Rates, count: int, streams: int) -> list[float]:
    """Return the milliseconds of each."""
    spent: list[float] = []

    async def stream(first: int) -> None:
        for number in range(first, count, streams):
            asked = subjects(number)
            started = time.perf_counter()
            async with rates.hold(asked, tokens=500) as hold:
                hold.settle(300)
            spent.append((time.perf_counter() - started) * 1000)

    await asyncio.gather(*(stream(first) for first in range(streams)))
    return spent


async def places(count: int) -> list[float]:
    """Return the milliseconds of each place at an engine that has one free."""
    admission, spent = Admission(8, 100, 10), list[float]()
    for number in range(count):
        started = time.perf_counter()
        async with admission.slot(str(number % 20)):
            pass
        spent.append((time.perf_counter() - started) * 1000)
    return spent


@contextmanager
def server() -> Generator[str | None]:
    """Yield the URL of a Redis server for the time being; None where there is no redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603  found on PATH, our own arguments
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0"
        process.terminate()


def told(spent: list[float]) -> dict[str, float]:
    """Return p50 and p99."""
    ordered = sorted(spent)
    return {"p50": round(ordered[len(ordered) // 2], 4), "p99": round(ordered[int(len(ordered) * 0.99)], 4)}


async def measure(url: str | None, count: int, streams: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each case."""
    found = {"admission": told(await places(count))}
    for name, where in (("memory", None), ("redis", url)):
        if name == "redis" and url is None:
            continue
        async with open_rates(where, timeout_seconds=10) as rates:
            await holds(rates, 100, 1)
            found[name] = told(await holds(rates, count, 1))
            found[f"{name}, {streams} streams"] = told(await holds(rates, count, streams))
            if where and not rates.shared:
                raise SystemExit(f"{where} was lost while it was measured")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--redis", metavar="URL", help="a Redis server (default: one of our own)")
    parser.add_argument("--count", type=int, default=5000, help="holds of each case (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=16, help="at a time (default: %(default)s)")
    args = parser.parse_args()
    with server() as own:
        found = asyncio.run(measure(args.redis or own, args.count, args.streams))
    for name, each in found.items():
        print(f"{name:20}p50 {each['p50']:8.4f} ms   p99 {each['p99']:8.4f} ms")
    print(json.dumps({"count": args.count, "milliseconds": found}))


if __name__ == "__main__":
    main()
