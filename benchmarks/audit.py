"""What the audit trail costs: `python -m benchmarks.audit`, with `--folder` on the disk that is to be measured.

append: `check` and `append` of a typical line, as a request does both, with a key, synchronised in the background every second;
microseconds of wall and of processor time. Beside it the same with texts of 2,000 characters, encrypted.
loop: the longest time that an event loop, which should wake every millisecond, was late while 200 lines a second were written,
and while none were.
verify: lines a second. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from accounts.audit import AuditLog, Entry
from accounts.chain import derived
from accounts.verify import verify

KEY, TEXT_KEY = derived("a secret of the benchmark", "chain"), derived("a secret of the benchmark", "texts")
TEXTS = {"question": "q" * 1000, "answer": "a" * 1000}
PACE = 200


def entry(number: int) -> Entry:
    """Return a line as a guarded answer from documents gives it."""
    return Entry(
        id=f"chatcmpl-{number:032x}", action="chat", tenant="acme", key="k1a2b3c4", route="handbook",
        versions={
            "model": "smollm2-135m-instruct:0123456789abcdef", "adapter": None, "prompt": "documents@0123456789ab",
            "index": "handbook:0123456789abcdef", "policy": "default@0123456789ab",
        },
        verdicts=[{"stage": "input", "detector": "email", "action": "mask", "count": 1, "shadow": False}],
        prompt_tokens=812, cached_tokens=128, completion_tokens=96, micros=1234, seconds=1.2345, first_token_seconds=0.1234,
    )  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return microseconds."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: round(ordered[int(len(ordered) * share)] * 1e6, 1) for name, share in shares.items()}


def append(folder: Path, lines: int, texts: dict[str, str] | None) -> dict[str, float]:
    """Measure lines one after the other."""
    times: list[float] = []
    with AuditLog(folder, KEY, TEXT_KEY) as log:
        began = time.thread_time()
        for number in range(lines):
            one = entry(number)
            started = time.perf_counter()
            log.check()
            log.append(one, texts)
            times.append(time.perf_counter() - started)
        processor = time.thread_time() - began
    return {**percentiles(times), "mean": round(statistics.mean(times) * 1e6, 1), "processor": round(processor / lines * 1e6, 1)}


async def lateness(folder: Path | None, seconds: float) -> dict[str, float]:
    """Measure how late an event loop wakes; with a folder, while lines are written to it on the loop."""
    late: list[float] = []
    log = AuditLog(folder, KEY) if folder else None
    ends = time.perf_counter() + seconds
    number, due = 0, time.perf_counter()
    while (now := time.perf_counter()) < ends:
        if log is not None and now >= due:
            log.append(entry(number))
            number, due = number + 1, due + 1 / PACE
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - started - 0.001)
    if log is not None:
        log.close()
    return {**percentiles(late), "max": round(max(late) * 1e6, 1)}


def main() -> None:
    """Measure, print, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on this disk (default: where temporary files are)")
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        root = Path(name)
        report: dict[str, object] = {
            "append_us": append(root / "lines", chosen.lines, None),
            "append_with_texts_us": append(root / "texts", chosen.lines // 5, TEXTS),
            "loop_late_us": asyncio.run(lateness(root / "loop", chosen.seconds)),
            "loop_late_without_us": asyncio.run(lateness(None, chosen.seconds)),
        }
        started = time.perf_counter()
        found = verify(root / "lines", KEY)
        if not found.ok:
            raise SystemExit("the trail does not hold")
        report["verify_lines_per_second"] = round(found.lines / (time.perf_counter() - started))
        report["bytes_per_line"] = round(sum(path.stat().st_size for path in (root / "lines").iterdir()) / found.lines)
    for measure, told in report.items():
        print(f"{measure}: {told}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
