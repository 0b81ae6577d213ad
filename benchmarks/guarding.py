"""What guards cost, and when a batching service wins over the same model in process: `make bench-guards` after `ekiben pack`.

pattern: the default policy's look at one text of 2,000 characters, in process, on one thread (processor time).
stream: the output guard fed in pieces of four characters; mean and largest number of characters held back.
names: the model for names at several loads, three ways: one text after the other in process, in threads in process, and in
batches of what waits, as the service does it (HTTP included).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx

from guards.detectors import Detectors
from guards.guard import Guard
from guards.names import open_names
from guards.output import OutputGuard
from guards.policy import Policy
from services.bundle import load_bundle
from services.engine_process import free_port
from services.lock import read_lock
from services.settings import load_settings
from services.store import stored_path

RESULTS = Path(__file__).parent / "results"
ENGLISH = (
    "Dear Sir or Madam, I bought a ticket from Oakfield to Riverton on 3 March 2026, and the train was cancelled. My name is "
    "Anna Whitfield, you can reach me at anna.whitfield@example.org or 415-555-2671. I paid with the card 4111 1111 1111 1111. "
    "Could you tell me how long a refund takes, and whether the seat reservation is refunded as well? "
)
PROSE = (
    "Refunds take five working days. A reservation of 12 euros is refunded as well, unless the train was late by less than "
    "60 minutes; in that case half of the fare is paid back. Ask at the counter, or on the web page of the station. "
)
CHINESE_PROSE = "退款需要五个工作日。如果列车晚点不足60分钟,只退一半票价;座位费12元也一并退还。请到车站窗口或网站办理,谢谢。"
CHINESE = (
    "您好,我三月三日从北京南站到上海虹桥的车次被取消了。我叫王小明,手机是13812345678,邮箱wang@example.cn。"
    "请问退票需要多长时间?座位费也会退吗?我的卡号是6222021234567890123,谢谢您的帮助。"
)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def pattern_tier(policy: Policy, rounds: int) -> dict[str, dict[str, float]]:
    """Processor milliseconds for texts of 2,000 characters."""
    found: dict[str, dict[str, float]] = {}
    for name, seed in {"en": ENGLISH, "zh": CHINESE}.items():
        text, times = (seed * 40)[:2000], list[float]()
        detectors = Detectors()
        for number in range(rounds + 3):
            started = time.process_time()
            try:
                Guard(policy, detectors).check_text(f"{number} {text}")
            finally:
                if number >= 3:  # noqa: PLR2004  the first ones import and compile
                    times.append((time.process_time() - started) * 1000)
        found[name] = {"p50": round(statistics.median(times), 2), "p95": round(percentile(times, 0.95), 2)}
    return found


def stream(policy: Policy) -> dict[str, dict[str, float]]:
    """Characters held back after each piece of four, of prose in which nothing is masked: all that is fed comes out."""
    found: dict[str, dict[str, float]] = {}
    for name, seed in {"en": PROSE, "zh": CHINESE_PROSE}.items():
        text = (seed * 60)[:6000]
        answer = OutputGuard(Guard(policy, Detectors(), system_prompt="You are the assistant of a railway. Be brief and kind."))
        held: list[float] = []
        shown = 0
        started = time.process_time()
        for at in range(0, len(text), 4):
            shown += len(answer.feed(text[at : at + 4]))
            held.append(at + 4 - shown)
        took = time.process_time() - started
        found[name] = {
            "held_mean": round(statistics.mean(held), 2), "held_p95": percentile(held, 0.95), "held_max": max(held),
            "ms_per_1000_characters": round(took * 1e6 / len(text), 2),
        }  # fmt: skip
    return found


async def at_once(ask: Callable[[str], Awaitable[None]], requests: int, streams: int) -> dict[str, float]:
    """Seconds for so many texts with so many asked at once."""
    waiting = asyncio.Semaphore(streams)
    times: list[float] = []

    async def one(number: int) -> None:
        async with waiting:
            started = time.perf_counter()
            await ask(f"{number}. {ENGLISH}")
            times.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(requests)))
    took = time.perf_counter() - started
    return {"texts_a_second": round(requests / took, 1), "p95_ms": round(percentile(times, 0.95) * 1000, 1)}


@contextmanager
def finder() -> Generator[str]:
    """Serve the guards' models, and give the address."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "services.gateway:Finder", "--host", "127.0.0.1", "--port", str(port)]
    served = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  no shell
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").is_success:
                    break
            time.sleep(0.2)
        yield url
    finally:
        served.terminate()
        served.wait()


async def names(requests: int, url: str) -> dict[str, dict[str, dict[str, float]]]:
    """The model for names in process and in its service, at 1, 8 and 32 requests at once."""
    model = open_names(stored_path(read_lock(load_settings().lock).names or ""))
    model.find(ENGLISH)

    async def inline(text: str) -> None:
        model.find(text)

    async def threads(text: str) -> None:
        await asyncio.to_thread(model.find, text)

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def service(text: str) -> None:
            (await http.post("/names", json={"texts": [text]})).raise_for_status()

        await asyncio.gather(*(service(ENGLISH) for _ in range(8)))
        ways = {"in process": inline, "in threads": threads, "service": service}
        return {way: {str(n): await at_once(ask, requests, n) for n in (1, 8, 32)} for way, ask in ways.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guarding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--texts", type=int, default=200, help="texts for each way and number of requests at once")
    args = parser.parse_args()
    bundle = load_bundle(load_settings().bundle, packed=True)
    policy = bundle.policies["default"]
    looking = tuple(check.model_copy(update={"shadow": True}) for check in policy.content.input)  # to the end of each text
    policy = replace(policy, content=policy.content.model_copy(update={"input": looking}))
    with finder() as url:
        by_way = asyncio.run(names(args.texts, url))
    found = {"pattern_cpu_ms": pattern_tier(policy, args.rounds), "stream": stream(policy), "names": by_way}
    lines = [f"{key}: {json.dumps(value)}" for key, value in found.items()]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "guards.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
