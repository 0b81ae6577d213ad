"""How often an adapter names the right label, beside its base model with a few examples in the prompt.

Both answer greedily and can say nothing but a label (vLLM's structured outputs). The adapter gets the prompt that it was trained
with; the base gets the list of labels and some rows of the file as examples, but never the row that it is being asked.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.manifest import Manifest
from adapters.rows import Row, draw_shots, labels_of

CONCURRENCY = 64
Messages = list[dict[str, str]]


class Engine(Protocol):
    """An OpenAI-compatible engine that knows vLLM's `structured_outputs`."""

    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Answers beside the rows that they answer."""

    rows: list[Row]
    labels: list[str]
    answers: list[str]
    base_answers: list[str]
    shots: int
    seed: int

    def report(self) -> dict[str, Any]:
        """Return what `ekiben adapter eval --json` prints: `n`, `accuracy`, `base_accuracy`, and how they came about."""
        known = set(self.labels)
        return {
            "n": len(self.rows),
            "accuracy": self._accuracy(self.answers),
            "base_accuracy": self._accuracy(self.base_answers),
            "labels": len(self.labels),
            "unknown_labels": dict(Counter(row.label for row in self.rows if row.label not in known)),
            "shots": self.shots,
            "seed": self.seed,
        }

    def _accuracy(self, answers: list[str]) -> float:
        return _share_right(answers, self.rows, self.labels)


def few_shot_messages(rows: list[Row], labels: list[str], shots: list[int], asked: int) -> Messages:
    """Return the base model's prompt for row `asked`: the labels, then each shot that is not this row's text, then the text."""
    listed = ", ".join(labels)
    messages = [
        {"role": "system", "content": f"Classify the message. Answer with one of these labels and nothing else: {listed}."}
    ]
    for position in shots:
        if position == asked or rows[position].text == rows[asked].text:
            continue
        messages += [{"role": "user", "content": rows[position].text}, {"role": "assistant", "content": rows[position].label}]
    return [*messages, {"role": "user", "content": rows[asked].text}]


async def evaluate(
    engine: Engine, models: tuple[str, str], *, manifest: Manifest, rows: list[Row], shots: int, limit: int | None, seed: int,
    advance: Callable[[str, float, float], None],
) -> Evaluation:  # fmt: skip
    """Ask adapter and base for each row's label; raises what the engine raises.

    `models` are the names of adapter and base at the engine. `limit` draws that many rows by the seed. A row whose label the
    adapter does not know counts as wrong, for both.
    """
    labels = manifest.labels or labels_of(rows)
    asked = list(range(len(rows)))
    if limit is not None and limit < len(rows):
        asked = sorted(random.Random(seed).sample(asked, limit))  # noqa: S311  not for security
    known = [position for position, row in enumerate(rows) if row.label in set(labels)]
    drawn = [known[i] for i in draw_shots([rows[position] for position in known], shots, seed)]
    plain = _plain_messages(manifest, [rows[i] for i in asked])
    few: list[Messages] = [few_shot_messages(rows, labels, drawn, i) for i in asked]
    answers = await _ask(engine, models[0], plain, labels, lambda n: advance("the adapter", n, len(asked)))
    base = await _ask(engine, models[1], few, labels, lambda n: advance("the base model", n, len(asked)))
    return Evaluation([rows[i] for i in asked], labels, answers, base, len(drawn), seed)


async def adapter_accuracy(
    engine: Engine, model: str, *, manifest: Manifest, rows: list[Row], advance: Callable[[int], None]
) -> float:
    """Return the share of rows that an adapter names right, without asking the base; raises what the engine raises."""
    labels = manifest.labels or labels_of(rows)
    return _share_right(await _ask(engine, model, _plain_messages(manifest, rows), labels, advance), rows, labels)


def _plain_messages(manifest: Manifest, rows: list[Row]) -> list[Messages]:
    system = {"role": "system", "content": manifest.system_prompt}
    return [[system, {"role": "user", "content": row.text}] for row in rows]


def _share_right(answers: list[str], rows: list[Row], labels: list[str]) -> float:
    known = set(labels)
    right = sum(answer == row.label and row.label in known for answer, row in zip(answers, rows, strict=True))
    return round(right / len(rows), 4)


async def _ask(
    engine: Engine, model: str, prompts: list[Messages], labels: list[str], advance: Callable[[int], None]
) -> list[str]:
    """Return the answers in order. The first is waited for: what the prompts share is then in the engine's cache."""
    gate = asyncio.Semaphore(CONCURRENCY)
    done = 0

    async def answer(messages: Messages) -> str:
        nonlocal done
        payload = {"model": model, "messages": messages, "temperature": 0, "structured_outputs": {"choice": labels}}
        async with gate:
            body = await engine.complete("/v1/chat/completions", payload)
        done += 1
        advance(done)
        return str(body["choices"][0]["message"]["content"]).strip()

    first = await answer(prompts[0])
    return [first, *await asyncio.gather(*map(answer, prompts[1:]))]
