"""Load for a served box: streamed chats, adapter answers, answers from documents.

`make load` runs it headless and prints percentiles of the time to the first token, of the whole answer, and of tokens a
second over the whole answer; the last line is JSON. Or by hand, with Locust's own page:
`.venv-load/bin/locust -f loadtests/locustfile.py --host http://localhost:3000`.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import defaultdict
from typing import Any

from locust import HttpUser, between, events, task

from loadtests.sse import StreamError
from loadtests.sse import events as sse_events

CHATS = (
    "Write two sentences about trains.",
    "What is a good soup for winter?",
    "Explain rain to a child.",
    "用一句话介绍你自己。",
)
REQUESTS = ("book me a hotel in rome", "is my flight on time", "how do you say hello in french", "do i need a visa for japan")
QUESTIONS = ("What does an ekiben cost?", "How long is lost property kept?", "When is the dining car open?", "退票手续费是多少?")

first_token_ms: dict[str, list[float]] = defaultdict(list)
answer_ms: dict[str, list[float]] = defaultdict(list)
tokens_per_second: dict[str, list[float]] = defaultdict(list)
counts: dict[str, int] = {}


class BoxUser(HttpUser):
    """Streams a chat from a route, and measures it."""

    abstract = True
    wait_time = between(0.5, 1.5)

    def chat(self, route: str, text: str, max_tokens: int) -> None:
        """Send one request, read its stream to the end, and record it; a broken stream counts as a failure."""
        body = {
            "model": route, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        started, first, tokens = time.perf_counter(), None, 0
        with self.client.post("/v1/chat/completions", json=body, stream=True, name=route, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {response.text[:200]}")
                return
            try:
                for event in sse_events(response.iter_content(chunk_size=None)):
                    if first is None and any(_says(choice) for choice in event["choices"]):
                        first = time.perf_counter()
                    if usage := event.get("usage"):
                        tokens = usage["completion_tokens"]
            except (StreamError, OSError) as broken:
                response.failure(str(broken))
                return
            response.success()
        seconds = time.perf_counter() - started
        answer_ms[route].append(seconds * 1000)
        tokens_per_second[route].append(tokens / seconds)
        if first is not None:
            first_token_ms[route].append((first - started) * 1000)


def _says(choice: dict[str, Any]) -> bool:
    return bool(choice["delta"].get("content"))


class ChatUser(BoxUser):
    """Somebody who talks."""

    weight = 3

    @task
    def talk(self) -> None:
        """A streamed chat."""
        self.chat("assistant", random.choice(CHATS), 64)


class AdapterUser(BoxUser):
    """A program that asks for intents."""

    weight = 2

    @task
    def classify(self) -> None:
        """A short answer of an adapter."""
        self.chat("travel-intents", random.choice(REQUESTS), 16)


class DocumentsUser(BoxUser):
    """Somebody who asks the handbook."""

    weight = 1

    @task
    def ask(self) -> None:
        """An answer from documents."""
        self.chat("handbook", random.choice(QUESTIONS), 64)


@events.quitting.add_listener
def settle(environment: Any, **_: Any) -> None:
    """Exit with 1 when anything failed or nothing was answered."""
    counts.update(failures=environment.stats.total.num_failures, requests=environment.stats.total.num_requests)
    environment.process_exit_code = 1 if counts["failures"] or not answer_ms else 0


@events.quit.add_listener
def report(**_: Any) -> None:
    """Print the percentiles, and one JSON object on the last line."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print(f"\n{'route':<16}{'measure':<20}{'n':>6}{'p50':>10}{'p90':>10}{'p95':>10}{'p99':>10}")
    for measure, table in (
        ("first token, ms", first_token_ms),
        ("whole answer, ms", answer_ms),
        ("tokens a second", tokens_per_second),
    ):
        for route, values in sorted(table.items()):
            quantiles = _percentiles(values)
            rows.setdefault(route, {})[measure] = quantiles
            print(
                f"{route:<16}{measure:<20}{len(values):>6}"
                + "".join(f"{quantiles[p]:>10.1f}" for p in ("p50", "p90", "p95", "p99"))
            )
    print(json.dumps({**counts, "routes": rows}), flush=True)


def _percentiles(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        values = values * 2
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": round(cuts[p - 1], 2) for p in (50, 90, 95, 99)}
