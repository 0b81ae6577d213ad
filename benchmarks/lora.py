"""LoRA side by side, one engine after the other on the same cores: `make bench-lora`, or `python -m benchmarks.lora --help`.

stock: vLLM's own kernels and layout, with LoRA. One function is mended, without which it does not start on CPUs without AMX
(benchmarks/stock_lora.py). ours: the engine as it is served, with LoRA. plain: the same engine without LoRA; plain-compiled
and plain-eager: with and without torch.compile. The adapters are random, of rank 16 on all linear layers.

base: all streams ask the base model. one: all ask one adapter. mixed: base and four adapters in turn.
The last line is JSON; its ratios are of medians over all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.random_lora import write_adapter
from services.bundle import Bundle, load_bundle
from services.engine import vllm_arguments, vllm_environment
from services.engine_process import engine_process, free_port
from services.lock import read_lock
from services.measure import Measured, measure
from services.store import stored_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
ADAPTERS = ("one", "two", "three", "four")
WORKLOADS = ("base", "one", "mixed")
SIDES = ("stock", "ours", "plain-eager", "plain-compiled")
KV_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Side:
    """An engine: its arguments but for the port, its environment, and whether it has adapters."""

    arguments: list[str]
    environment: dict[str, str]
    lora: bool

    @property
    def eager(self) -> bool:
        """Whether vLLM is told not to compile."""
        return "--enforce-eager" in self.arguments


@dataclass
class Found:
    """What was measured of one engine, over all its starts."""

    start_seconds: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    bursts: defaultdict[str, list[Measured]] = field(default_factory=lambda: defaultdict(list))

    def tokens_per_second(self, workload: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(burst.tokens_per_second for burst in self.bursts[workload])

    def ttft_ms(self, workload: str) -> float:
        """Return the median over the rounds of each round's median."""
        return statistics.median(burst.ttft_p50_seconds for burst in self.bursts[workload]) * 1000


def make_sides(bundle: Bundle, model: Path, adapters: dict[str, Path], streams: int, cores: int) -> dict[str, Side]:
    """Return the engines that are compared, by name; each is to be given a port."""
    engine = {"max_loras": len(ADAPTERS), "max_lora_rank": 16, "max_num_seqs": streams, "kv_cache_memory_bytes": KV_CACHE_BYTES}

    def ours(loras: dict[str, Path], **more: bool) -> Side:
        changed = bundle.model_copy(update={"engine": bundle.engine.model_copy(update={**engine, **more})})
        arguments = vllm_arguments(changed, model=model, adapters=loras, device="cpu", port=0, free_bytes=0)
        return Side(arguments, vllm_environment("cpu", cores), lora=bool(loras))

    return {
        "stock": Side(
            [
                "--model", str(model), "--served-model-name", bundle.model.name, "--host", "127.0.0.1", "--port", "0",
                "--max-model-len", str(bundle.engine.max_model_len), "--max-num-seqs", str(streams),
                "--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--disable-uvicorn-access-log",
                "--enable-lora", "--max-loras", str(len(ADAPTERS)), "--max-lora-rank", "16",
                "--lora-modules", *(f"{name}={path}" for name, path in adapters.items()),
                "--worker-extension-cls", "benchmarks.stock_lora.Mended",
            ],
            {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
            lora=True,
        ),
        "ours": ours(adapters),
        "plain-eager": ours({}, enforce_eager=True),
        "plain-compiled": ours({}, enforce_eager=False),
    }  # fmt: skip


async def run(side: Side, base: str, found: Found, args: argparse.Namespace, cycle: int) -> None:
    """Start the engine, warm it, and measure each workload `args.rounds` times."""
    port = free_port()
    arguments = [
        str(port) if before == "--port" else each for before, each in zip(["", *side.arguments], side.arguments, strict=False)
    ]
    models = {"base": [base], "one": [ADAPTERS[0]], "mixed": [base, *ADAPTERS]}
    workloads = WORKLOADS if side.lora else ("base",)
    async with engine_process(arguments, side.environment, port=port) as engine:
        await measure(engine.url, models[workloads[-1]], args.streams, 4, seed=-1)  # the first burst is slower
        for number in range(args.rounds):
            for i, workload in enumerate(workloads):
                seed = (cycle * args.rounds + number) * len(WORKLOADS) + i
                found.bursts[workload].append(await measure(engine.url, models[workload], args.streams, args.tokens, seed=seed))
        found.start_seconds.append(engine.start_seconds)
        found.memory_bytes.append(engine.memory_bytes())


def table(found: dict[str, Found]) -> str:
    """Return the figures, a line for each engine."""
    head = f"{'':16}{'start s':>8}{'GiB':>6}" + "".join(f"{name + ' tok/s':>13}{'TTFT ms':>9}" for name in WORKLOADS)
    lines = [head]
    for name, one in found.items():
        line = f"{name:16}{statistics.median(one.start_seconds):>8.1f}{statistics.median(one.memory_bytes) / 2**30:>6.2f}"
        for workload in WORKLOADS:
            known = workload in one.bursts
            line += f"{one.tokens_per_second(workload):>13.0f}{one.ttft_ms(workload):>9.0f}" if known else f"{'-':>13}{'-':>9}"
        lines.append(line)
    return "\n".join(lines)


def summary(found: dict[str, Found], sides: dict[str, Side]) -> dict[str, float | None]:
    """Return the ratios that count; None where an engine was left out."""

    def ratio(over: str, workload: str = "mixed") -> float | None:
        if "ours" not in found or over not in found:
            return None
        other = workload if sides[over].lora else "base"
        return round(found["ours"].tokens_per_second(workload) / found[over].tokens_per_second(other), 3)

    same = "plain-eager" if sides["ours"].eager else "plain-compiled"
    return {
        "mixed_vs_no_lora": ratio(same),
        "mixed_vs_stock_lora": ratio("stock"),
        "mixed_vs_no_lora_compiled": ratio("plain-compiled"),
        "base_vs_no_lora": ratio(same, "base"),
        "one_vs_no_lora": ratio(same, "one"),
        "base_vs_stock_lora": ratio("stock", "base"),
        "one_vs_stock_lora": ratio("stock", "one"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", type=int, default=2, help="processors for everything, this client included (default 2)")
    parser.add_argument("--streams", type=int, default=64, help="requests at once (default 64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--rounds", type=int, default=1, help="bursts of each workload in one run of an engine (default 1)")
    parser.add_argument("--cycles", type=int, default=2, help="runs of each engine (default 2)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="leave engines out (default: all)")
    args = parser.parse_args()
    cores = psutil.Process().cpu_affinity()[: args.cores]
    psutil.Process().cpu_affinity(cores)  # the engines inherit it
    bundle = load_bundle(ROOT / "bundle.yaml").bundle
    model = stored_path(read_lock(ROOT / "bundle.lock").model)
    found = {name: Found() for name in SIDES if name in args.sides}
    with tempfile.TemporaryDirectory() as folder:
        adapters = {name: write_adapter(Path(folder) / name, model=model, seed=i, rank=16) for i, name in enumerate(ADAPTERS)}
        sides = make_sides(bundle, model, adapters, args.streams, len(cores))
        for cycle in range(args.cycles):
            for name, one in found.items():
                print(f"cycle {cycle + 1} of {args.cycles}: {name}", flush=True)
                asyncio.run(run(sides[name], bundle.model.name, one, args, cycle))
    text = (
        f"{table(found)}\n{args.streams} streams of {args.tokens} tokens on {len(cores)} cores; "
        "stock: vLLM's kernels, with _get_lora_device mended (CPUs without AMX)\n"
        f"ours with LoRA is {'eager' if sides['ours'].eager else 'compiled'}"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lora.txt").write_text(text + "\n", encoding="utf-8")
    print(json.dumps({**summary(found, sides), "streams": args.streams, "tokens": args.tokens, "cycles": args.cycles}))


if __name__ == "__main__":
    main()
