"""The gateway beside the bare engine behind it, in turns, in one run: `make bench` with a box served by `make serve`.

Streams chats of 64 tokens through both, and prints throughput and time to the first token. The last line is JSON with
`throughput_vs_engine` and `added_ttft_ms_p50`, the medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

import aiohttp

from services.engine_client import sse_data

RESULTS = Path(__file__).parent / "results"


async def one(session: aiohttp.ClientSession, url: str, model: str, number: int) -> tuple[float, int]:
    """Stream one answer; return seconds to its first piece of text, and its tokens."""
    body = {
        "model": model, "messages": [{"role": "user", "content": f"Tell a story about the number {number}."}],
        "max_tokens": 64, "ignore_eos": True, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for data in sse_data(response.content.iter_any()):
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - started
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
    return first, tokens


async def load(url: str, model: str, streams: int) -> tuple[float, float]:
    """Return tokens a second, and the median time to the first token in seconds."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        started = time.perf_counter()
        results = await asyncio.gather(*(one(session, url, model, number) for number in range(streams)))
        seconds = time.perf_counter() - started
    return sum(tokens for _, tokens in results) / seconds, statistics.median(first for first, _ in results)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gateway.py", description=__doc__)
    parser.add_argument("--gateway", default="http://127.0.0.1:3000")
    parser.add_argument("--engine", default="http://127.0.0.1:8421")
    parser.add_argument("--route", default="assistant")
    parser.add_argument("--engine-model", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sides = ((args.engine, args.engine_model), (args.gateway, args.route))
    for side in sides:
        asyncio.run(load(*side, 4))  # warm
    lines = [f"{'round':>5}{'engine tok/s':>14}{'gateway tok/s':>15}{'engine TTFT ms':>16}{'gateway TTFT ms':>17}"]
    ratios: list[float] = []
    added: list[float] = []
    for number in range(1, args.rounds + 1):
        (engine, engine_first), (gateway, gateway_first) = (asyncio.run(load(*side, args.streams)) for side in sides)
        ratios.append(gateway / engine)
        added.append((gateway_first - engine_first) * 1000)
        lines.append(f"{number:>5}{engine:>14.1f}{gateway:>15.1f}{engine_first * 1000:>16.0f}{gateway_first * 1000:>17.0f}")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = {"throughput_vs_engine": statistics.median(ratios), "added_ttft_ms_p50": statistics.median(added)}
    print(json.dumps({**{k: round(v, 3) for k, v in summary.items()}, "streams": args.streams, "rounds": args.rounds}))


if __name__ == "__main__":
    main()
