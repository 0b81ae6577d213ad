"""From nothing to the first token: stock vLLM started cold, and the engine restored from its snapshot, in turn on this machine.

`python -m benchmarks.coldstart [--restores 3] [--starts 1] [--cpus 0,1]`, as root with criu (`make criu`) and a packed bundle.
Stock vLLM is started eager, without adapters, and with a cache of 1 GiB: the shortest start that it has. The snapshot holds the
adapters too. The last line is JSON; `restore_vs_stock` is the ratio of the medians, `answers_equal` whether greedy answers are
the same.
"""

from __future__ import annotations

import argparse
import json
import os  # noqa: TID251  the environment of what is started
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.engine_process import free_port
from services.lock import read_lock
from services.settings import ROOT, load_settings
from services.store import stored_path

LIMIT_SECONDS = 600
QUESTIONS = ("What is the capital of France?", "Name three colours.", "How does one boil an egg?")
TOKENS = 24


@dataclass(frozen=True)
class Start:
    """One start: seconds to the first token, greedy answers, and what was drawn without a seed."""

    seconds: float
    answers: list[str]
    drawn: str


def measure(words: list[str], port: int, model: str, environment: dict[str, str]) -> Start:
    """Start an engine, time its first token, ask it, and end it."""
    began = time.perf_counter()
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
                seconds = first_token(client, model, process) - began
                answers = [said(client, model, question, temperature=0) for question in QUESTIONS]
                drawn = said(client, model, "Tell me a story.", temperature=1)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    return Start(seconds, answers, drawn)


def first_token(client: httpx.Client, model: str, process: subprocess.Popen[bytes]) -> float:
    """Ask until there is an answer, and return when its first token came."""
    body = request(model, QUESTIONS[0], temperature=0) | {"stream": True}
    deadline = time.perf_counter() + LIMIT_SECONDS
    while time.perf_counter() < deadline and process.poll() is None:
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        return time.perf_counter()
        except httpx.TransportError:
            time.sleep(0.01)
    raise SystemExit("the engine ended, or was not there in time")


def request(model: str, question: str, *, temperature: float) -> dict[str, Any]:
    """Return the body of a question."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": temperature}


def said(client: httpx.Client, model: str, question: str, *, temperature: float) -> str:
    """Return an answer."""
    answer = client.post("/v1/chat/completions", json=request(model, question, temperature=temperature)).raise_for_status()
    return answer.json()["choices"][0]["message"]["content"]


def main() -> None:
    """Make the snapshot where there is none, and measure."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--restores", type=int, default=3)
    options.add_argument("--starts", type=int, default=1)
    options.add_argument("--cpus", help="processors for both, such as 0,1 (default: all)")
    told = options.parse_args()
    if told.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in told.cpus.split(",")})
    settings = load_settings()
    lock, port = read_lock(settings.lock), free_port()
    name = lock.model.partition(":")[0]
    cli = [sys.executable, "-m", "services.cli", "snapshot"]
    subprocess.run([*cli, "create"], cwd=ROOT, check=True)  # noqa: S603
    stock_words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(stored_path(lock.model))]
    stock_words += ["--served-model-name", name, "--max-model-len", "4096", "--port", str(port), "--host", "127.0.0.1"]
    stock_words += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**30), "--disable-uvicorn-access-log"]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    stock = [measure(stock_words, port, name, quiet) for _ in range(told.starts)]
    here = {"EKIBEN_ENGINE_PORT": str(port)}
    restored = [
        measure([sys.executable, "-m", "services.restoring", "--or-fail"], port, name, here) for _ in range(told.restores)
    ]
    cold, warm = (statistics.median(start.seconds for start in starts) for starts in (stock, restored))
    report = {
        "stock_seconds": [round(start.seconds, 2) for start in stock],
        "restore_seconds": [round(start.seconds, 2) for start in restored],
        "restore_vs_stock": round(warm / cold, 4),
        "answers_equal": len({tuple(start.answers) for start in stock + restored}) == 1,
        "samples_of_restores_differ": len({start.drawn for start in restored}) == len(restored),
        "load_average": round(float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0]), 1),
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
