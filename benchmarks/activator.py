"""What the activator adds to a request of an upstream that is awake: `python -m benchmarks.activator --help`.

Chats of 20 words, whole and streamed (16 events), straight to a server that answers at once and through the activator before it,
one at a time in turns on the same processors; added ms are differences of percentiles. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import aiohttp
import psutil

from benchmarks import proxies
from benchmarks.overhead import ask
from benchmarks.proxies import Front
from services.engine_process import free_port


async def _seconds(fronts: dict[str, Front], rounds: int, *, streamed: bool) -> dict[str, list[tuple[float, float]]]:
    """Return seconds to the first byte and to the end, of each request to each front."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in fronts}
    async with aiohttp.ClientSession() as session:
        for number in range(rounds + 20):
            for name, front in fronts.items():
                taken = await ask(session, front, streamed=streamed)
                if number >= 20:  # noqa: PLR2004  the first warm up
                    found[name].append(taken)
    return found


def _ms(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main() -> None:
    """Measure, print a table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind, to each side")
    requests = parser.parse_args().requests
    cores, port = sorted(psutil.Process().cpu_affinity() or [0]), free_port()
    url, rows = f"http://127.0.0.1:{port}", {}
    with tempfile.TemporaryDirectory() as folder, proxies.stand_in(cores) as direct:
        # It never was asleep: what another runs is found ready.
        nothing = Path(folder) / "nothing"
        nothing.write_text("#!/bin/sh\n")
        nothing.chmod(0o700)
        arguments = ["--listen", f"127.0.0.1:{port}", "--upstream", direct.url, "--idle-seconds", "0"]
        command = [sys.executable, "-m", "services.cli", "activate", *arguments]
        command += ["--start-command", str(nothing), "--stop-command", str(nothing)]
        with proxies.server(command, f"{url}/health", cores=cores) as pid:
            fronts = {"direct": direct, "activator": Front(url, direct.model, pid=pid)}
            for streamed in (False, True):
                found = asyncio.run(_seconds(fronts, requests, streamed=streamed))
                for column, what in ((0, "first byte"), (1, "end")):
                    rows["stream" if streamed else "whole", what] = {
                        f"{name}_p{share * 100:.0f}_ms": round(_ms([taken[column] for taken in seconds], share), 3)
                        for name, seconds in found.items()
                        for share in (0.5, 0.99)
                    }
            rss = fronts["activator"].rss_mb()
    for (kind, what), row in rows.items():
        added = ", ".join(f"p{p} +{row[f'activator_p{p}_ms'] - row[f'direct_p{p}_ms']:.2f} ms" for p in (50, 99))
        print(f"{kind:>7} {what:<11} {added}   {row}")
    print(f"memory of the activator: {rss:.0f} MiB")
    print(json.dumps({"requests": requests, "rss_mb": round(rss), **{f"{a} {b}": row for (a, b), row in rows.items()}}))


if __name__ == "__main__":
    main()
