"""The gateway before an engine, beside that engine alone: `make bench-gateway` after `ekiben pack`.

engine: the bundle's engine, with the layout that was tuned here or the safe one. gateway: `bentoml serve` before it with keys,
limits, budget, targets, cache, metrics, log and audit on, guards off. stock: vLLM with its own defaults, nothing before it.
litellm, with `--litellm EXECUTABLE`: LiteLLM's proxy, one worker, before the same engine.

Each gets the same bursts of streams, all begun at once, with no prompt twice; sides take turns, and the engine whose turn it
is not is stopped. Engines have the first two processors, what stands before them the third, the load the fourth (where there are
as many). The last line is JSON: ratios and added times to the first token are medians over the rounds, p99 of all streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os  # noqa: TID251  the engines must not have this shell's threads
import signal
import statistics
import tempfile
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import proxies
from benchmarks.engine import Side as EngineSide
from benchmarks.engine import sides as engines
from benchmarks.proxies import Front, NotStarted
from services.engine import GIB
from services.engine_process import engine_process
from services.layout import this_machine
from services.measure import Measured, measure
from services.tuning import Others

RESULTS = Path(__file__).parent / "results"


@dataclass
class Side:
    """A server, the engine that answers behind it, and its bursts."""

    name: str
    front: Front
    engine: EngineSide
    bursts: list[Measured] = field(default_factory=list)

    async def burst(self, streams: int, tokens: int, seed: int) -> Measured:
        """Wake the engine, put one burst on the server, and stop the engine again."""
        self.engine.send(signal.SIGCONT)
        try:
            return await measure(self.front.url, self.front.model, streams, tokens, seed=seed, key=self.front.token or None)
        finally:
            self.engine.send(signal.SIGSTOP)

    def rate(self) -> float:
        """Median tokens a second."""
        return statistics.median(burst.tokens_per_second for burst in self.bursts)

    def ttft_ms(self) -> float:
        """Median over the rounds of the median time to the first token."""
        return statistics.median(burst.ttft_p50_seconds for burst in self.bursts) * 1000

    def ttft_p99_ms(self) -> float:
        """Of all streams of all rounds."""
        times = sorted(seconds for burst in self.bursts for seconds in burst.ttft_seconds)
        return times[min(int(len(times) * 0.99), len(times) - 1)] * 1000

    def ratio(self, other: Side) -> float:
        """Median over the rounds of the tokens a second over the other's in the same round."""
        pairs = zip(self.bursts, other.bursts, strict=True)
        return statistics.median(mine.tokens_per_second / theirs.tokens_per_second for mine, theirs in pairs)

    def added_ms(self, other: Side) -> float:
        """Median over the rounds of the median time to the first token less the other's."""
        pairs = zip(self.bursts, other.bursts, strict=True)
        return statistics.median(mine.ttft_p50_seconds - theirs.ttft_p50_seconds for mine, theirs in pairs) * 1000


def summary(sides: dict[str, Side]) -> dict[str, float | str]:
    """Return the figures that count."""
    engine = sides["engine"]
    found: dict[str, float | str] = {}
    for name, prefix in (("gateway", ""), ("litellm", "litellm_")):
        if (side := sides.get(name)) is None:
            found[f"{prefix}throughput_vs_engine"] = "not installed"
            continue
        found[f"{prefix}throughput_vs_engine"] = round(side.ratio(engine), 3)
        found[f"{prefix}throughput_vs_stock"] = round(side.ratio(sides["stock"]), 3)
        found[f"{prefix}added_ttft_ms_p50"] = round(side.added_ms(engine), 1)
        found[f"{prefix}added_ttft_ms_p99"] = round(side.ttft_p99_ms() - engine.ttft_p99_ms(), 1)
    return found


def table(sides: dict[str, Side]) -> list[str]:
    """Return the figures of each side."""
    head = f"{'':<9}{'tok/s':>8}{'TTFT ms':>9}{'p99':>8}"
    return [head] + [f"{n:<9}{s.rate():>8.1f}{s.ttft_ms():>9.0f}{s.ttft_p99_ms():>8.0f}" for n, s in sides.items()]


def shares(cores: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the processors of engines, of what stands before them, and of the load."""
    return cores[:2], cores[2:3] or cores[:2], cores[3:4] or cores[2:3] or cores[:2]


async def run(args: argparse.Namespace, cores: list[int]) -> tuple[dict[str, Side], float]:
    """Start everything, measure in turns; return the sides, and the share of the processors that others used."""
    engine_cores, front_cores, load_cores = shares(cores)
    os.sched_setaffinity(0, engine_cores)  # inherited, and what the layout is chosen by
    found = engines(int(args.kv_cache_gib * GIB))
    stock, ours = found[0], found[-1]
    async with AsyncExitStack() as running:
        try:
            for engine in (stock, ours):
                print(f"starting {engine.name}", flush=True)
                engine.engine = await running.enter_async_context(
                    engine_process(engine.arguments, engine.environment, port=engine.port)
                )
                if engine is stock:
                    stock.send(signal.SIGSTOP)
            os.sched_setaffinity(0, load_cores)
            bare = Front(f"http://127.0.0.1:{ours.port}", "model")
            sides = {
                "engine": Side("engine", bare, ours),
                "stock": Side("stock", Front(f"http://127.0.0.1:{stock.port}", "model"), stock),
            }
            fronts = running.enter_context(ExitStack())
            folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
            ways = {"gateway": lambda: proxies.ours(bare, folder, front_cores, bentoml=True)}
            if args.litellm is not None and args.litellm.is_file():
                ways["litellm"] = lambda: proxies.litellm(args.litellm, bare, folder, front_cores)
            for name, way in ways.items():
                print(f"starting {name}", flush=True)
                sides[name] = Side(name, await asyncio.to_thread(fronts.enter_context, way()), ours)
            for place, side in enumerate(sides.values()):
                await side.burst(args.streams, 8, seed=-1 - place)  # the first burst is slower
            os.sched_setaffinity(0, cores)  # `Others` looks at the processors of this process
            others = Others()
            os.sched_setaffinity(0, load_cores)
            for number in range(args.rounds):
                for place, side in enumerate(list(sides.values())[:: 1 if number % 2 == 0 else -1]):
                    side.bursts.append(await side.burst(args.streams, args.tokens, seed=10 * (number + 1) + place))
                last = ", ".join(f"{name} {s.bursts[-1].tokens_per_second:.0f}" for name, s in sides.items())
                print(f"round {number + 1} of {args.rounds}, tokens a second: {last}", flush=True)
            os.sched_setaffinity(0, cores)
            return sides, others.share()
        finally:
            for engine in (stock, ours):
                engine.send(signal.SIGCONT)


def main() -> None:
    """Measure, print, and print JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", type=Path, help="LiteLLM's executable, of an environment of its own")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    args = parser.parse_args()
    cores = psutil.Process().cpu_affinity()
    os.environ.pop("OMP_NUM_THREADS", None)
    sides, others = asyncio.run(run(args, cores))
    layout = sides["engine"].engine.name
    lines = [
        f"{this_machine().cpu}, processors {cores}, {args.rounds} rounds of {args.streams} streams of {args.tokens} tokens; "
        f"engine: {layout} layout; others used {others:.0%}",
        *table(sides),
    ]
    report = {**summary(sides), "layout": layout, "streams": args.streams, "rounds": args.rounds}
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway.txt").write_text("\n".join([*lines, json.dumps(report)]) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except NotStarted as error:
        raise SystemExit(str(error)) from None
