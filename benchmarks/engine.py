"""Our engine beside stock vLLM, in turns, in one run, on the same processors: `make bench-engine` after `ekiben pack`.

Stock is `python -m vllm.entrypoints.openai.api_server --model X` with vLLM's defaults, compiling included, and a fixed KV cache
so that both fit. Ours is the bundle's engine without adapters (stock LoRA answers wrongly on a CPU), once with the safe layout
and once with the layout that `ekiben model tune --no-adapters` measured here, where it did. An engine whose turn it is not is
stopped: it takes no processor time. The last line is JSON: `vs_stock` has, by the number of streams, the median over the rounds
of our tokens a second over stock's in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os  # noqa: TID251  both sides must start from the same environment
import signal
import statistics
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from services.bundle import load_bundle
from services.engine import GIB, vllm_arguments, vllm_environment
from services.engine_process import RunningEngine, engine_process, free_port
from services.layout import Layout, default_layout, this_machine
from services.lock import read_lock
from services.measure import Measured, measure
from services.settings import load_settings
from services.store import stored_path
from services.tuning import Others, layout_here

RESULTS = Path(__file__).parent / "results"
STREAMS = (1, 16, 64)
TOKENS = 64


@dataclass
class Side:
    """One engine of the comparison, and what it gave."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    port: int
    engine: RunningEngine | None = None
    memory_mb: float = 0
    bursts: dict[int, list[Measured]] = field(default_factory=lambda: {streams: [] for streams in STREAMS})

    def rate(self, streams: int) -> float:
        """Median tokens a second."""
        return statistics.median(burst.tokens_per_second for burst in self.bursts[streams])

    def ttft_ms(self, streams: int) -> float:
        """Median over the rounds of the median time to the first token."""
        return statistics.median(burst.ttft_p50_seconds for burst in self.bursts[streams]) * 1000

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of the engine."""
        if self.engine is not None:
            for process in (psutil.Process(self.engine.pid), *psutil.Process(self.engine.pid).children(recursive=True)):
                process.send_signal(number)

    async def burst(self, streams: int, seed: int) -> Measured:
        """Wake the engine, put one burst on it, and stop it again."""
        if self.engine is None:
            raise AssertionError
        self.send(signal.SIGCONT)
        try:
            return await measure(self.engine.url, "model", streams, TOKENS, seed=seed)
        finally:
            self.send(signal.SIGSTOP)


def sides(kv_cache_bytes: int) -> list[Side]:
    """Return stock, ours with the safe layout, and ours with the measured one, where it is another."""
    settings = load_settings()
    bundle = load_bundle(settings.bundle, packed=True).bundle
    engine = bundle.engine.model_copy(update={"kv_cache_memory_bytes": kv_cache_bytes})
    bundle = bundle.model_copy(update={"engine": engine, "model": bundle.model.model_copy(update={"name": "model"})})
    tag, machine = read_lock(settings.lock).model, this_machine()
    model = stored_path(tag)

    def ours(name: str, layout: Layout) -> Side:
        port = free_port()
        arguments = vllm_arguments(
            bundle, model=model, adapters={}, device="cpu", port=port, free_bytes=8 * GIB, layout=layout
        )  # fmt: skip
        return Side(name, arguments, vllm_environment("cpu", machine.cores, layout), port)

    safe, used = default_layout(machine), layout_here(bundle, tag, machine, settings.cache_dir, lora=False)
    port = free_port()
    stock = ["--model", str(model), "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    stock += ["--kv-cache-memory-bytes", str(kv_cache_bytes)]
    found = [Side("stock", stock, {}, port), ours("safe", safe)]
    return [*found, ours("tuned", used)] if used != safe else found


async def run(compared: list[Side], rounds: int) -> float:
    """Start the sides one after the other, and measure in turns; return the share of the processors that others used."""
    stacks = {side.name: AsyncExitStack() for side in compared}
    try:
        for side in compared:
            print(f"starting {side.name}", file=sys.stderr)
            side.engine = await stacks[side.name].enter_async_context(
                engine_process(side.arguments, side.environment, port=side.port)
            )
            for streams in STREAMS:
                await side.burst(streams, seed=streams)
        others = Others()
        for number in range(rounds):
            for streams in STREAMS:
                for side in compared[:: 1 if number % 2 == 0 else -1]:
                    side.bursts[streams].append(await side.burst(streams, seed=1000 * (number + 1) + streams))
        share = others.share()
    finally:
        for side in compared:
            side.send(signal.SIGCONT)
            if side.engine is not None:
                side.memory_mb = side.engine.memory_bytes() / 2**20
        for stack in stacks.values():
            await stack.aclose()
    return share


def table(compared: list[Side]) -> list[str]:
    """Return the lines of the table."""
    head = f"{'engine':<8}{'start s':>9}{'memory MB':>11}"
    lines = [head + "".join(f"{f'{n} tok/s':>12}{'TTFT ms':>9}" for n in STREAMS)]
    for side in compared:
        start = side.engine.start_seconds if side.engine else 0
        cells = "".join(f"{side.rate(n):>12.1f}{side.ttft_ms(n):>9.0f}" for n in STREAMS)
        lines.append(f"{side.name:<8}{start:>9.1f}{side.memory_mb:>11.0f}{cells}")
    return lines


def ratios(stock: Side, side: Side) -> dict[str, float]:
    """Return the median over the rounds of this side's tokens a second over stock's in the same round, by streams."""
    return {
        str(n): round(
            statistics.median(
                ours.tokens_per_second / theirs.tokens_per_second
                for ours, theirs in zip(side.bursts[n], stock.bursts[n], strict=True)
            ),
            3,
        )
        for n in STREAMS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python benchmarks/engine.py", description=__doc__)
    parser.add_argument("--cores", type=int, default=2, help="processors that both engines and the load share")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    args = parser.parse_args()
    me = psutil.Process()
    me.cpu_affinity(me.cpu_affinity()[: args.cores])
    os.environ.pop("OMP_NUM_THREADS", None)
    compared = sides(int(args.kv_cache_gib * GIB))
    others = asyncio.run(run(compared, args.rounds))
    machine = this_machine()
    by_name = {side.name: ratios(compared[0], side) for side in compared[1:]}
    used = compared[-1]
    lines = [
        f"{machine.cpu}, {args.cores} cores, {args.rounds} rounds of {TOKENS} tokens; others used {others:.0%}",
        *table(compared),
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.txt").write_text("\n".join([*lines, json.dumps(by_name)]) + "\n", encoding="utf-8")
    best = by_name[used.name]
    print(json.dumps({"vs_stock": best, "vs_stock_min": min(best.values()), "layout": used.name, "all": by_name}))


if __name__ == "__main__":
    main()
