"""What the answer cache saves on traffic with repeats in other words, and what it gets wrong.

Run: `python -m benchmarks.caching PAIRS`, with pairs as `ekiben cache eval` reads them. The judgement is calibrated on one half
of the pairs; the requests are made of the other: of each 100, 30 ask again what was asked before (the second question of a pair
that is the same; with `mixed`, every other one of them in the very same words), the others are first questions of pairs. A
hit is wrong where the judgements of the whole file, taken together, do not call both questions the same. An answer's tokens are
drawn from a log-normal distribution (median 150); its question's words are its prompt. Look-ups are timed with the embedding
model in this process, on one thread. Prints a line for each bound on wrong answers; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.answers import Answers
from cache.calibration import BadCalibration, Calibration, Population
from cache.evaluate import groups_of, plain
from cache.intervals import clopper_pearson
from cache.judged import Pair, read_pairs
from cache.key import Scope
from cache.semantic import Matcher
from cache.store import MemoryStore
from cache.train import train
from rag.embedding import MultilingualE5
from services.caching import FACTS, measure_pairs
from services.engine import usable_cores
from services.settings import load_settings

REPEATS = 0.3
BOUNDS: tuple[tuple[Population, float], ...] = (
    *(("pairs", bound) for bound in (0.01, 0.02, 0.025, 0.03)),
    *(("lookups", bound) for bound in (0.01, 0.02, 0.025, 0.03, 0.05)),
)
SCOPE = Scope("bench", [], {"model": "none"}, {})


@dataclass(frozen=True)
class Request:
    """A question, whether it repeats one that was asked before, and what its answer costs, in tokens."""

    question: str
    repeat: bool
    tokens: int


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return two halves that have no question in common, not even by a chain of judgements."""
    groups = groups_of(pairs)
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        one, other = (zlib.crc32(str(groups[plain(text)]).encode()) % 2 for text in (pair.one, pair.other))
        if one == other:
            halves[one].append(pair)
    return halves


def workload(
    pairs: Sequence[Pair], requests: int, *, verbatim: bool, seed: int, again: Sequence[Pair] | None = None
) -> list[Request]:
    """Return requests in an order in which every repeat comes after what it repeats; the pairs of `again` are those repeats."""
    rng = random.Random(seed)  # noqa: S311  a benchmark
    same = [pair for pair in pairs if pair.same] if again is None else list(again)
    singles = [pair for pair in pairs if not pair.same]
    rng.shuffle(same)
    rng.shuffle(singles)
    # Of each repeat there are two requests; the share is kept also where the file has too few of one kind.
    more = 1 / REPEATS - 2
    repeats = min(round(requests * REPEATS), len(same), int(len(singles) / more))
    others = round(repeats * more)
    placed: list[tuple[float, Request]] = []

    def tokens(question: str) -> int:
        return round(rng.lognormvariate(math.log(150), 0.6)) + len(question.split())

    for number, pair in enumerate(same[:repeats]):
        first, then = sorted((rng.random(), rng.random()))
        words = pair.one if verbatim and number % 2 else pair.other
        cost = tokens(pair.one)
        placed += [(first, Request(pair.one, repeat=False, tokens=cost)), (then, Request(words, repeat=True, tokens=cost))]
    placed += [(rng.random(), Request(pair.one, repeat=False, tokens=tokens(pair.one))) for pair in singles[:others]]
    return [request for _, request in sorted(placed, key=lambda one: one[0])]


class Embedder:
    """The product's model; a text is embedded once, and the time of the first time counts for the others."""

    def __init__(self) -> None:
        self._model = MultilingualE5()
        self._known: dict[str, tuple[list[float], float]] = {}
        self.spent = self.embedding = 0.0

    async def __call__(self, text: str) -> list[float]:
        """Return the vector; `embedding` are the seconds that took, `spent` those of them that passed at another time."""
        if text not in self._known:
            started = time.perf_counter()
            vector = self._model.embed_query(text)
            self._known[text] = vector, time.perf_counter() - started
            self.embedding = self._known[text][1]
            return vector
        vector, self.embedding = self._known[text]
        self.spent += self.embedding
        return vector


async def replay(requests: Sequence[Request], matcher: Matcher, embed: Embedder, groups: dict[str, int]) -> dict[str, Any]:
    """Send the requests through a fresh cache and return the figures."""
    answers = Answers(MemoryStore(), matcher, embed)
    times: list[float] = []
    without: list[float] = []
    hits = {"exact": 0, "semantic": 0}
    wrong = saved = served = 0
    for request in requests:
        embed.spent = embed.embedding = 0.0
        started = time.perf_counter()
        async with answers.flight(SCOPE, request.question) as flight:
            times.append(time.perf_counter() - started + embed.spent)
            without.append(times[-1] - embed.embedding)
            if flight.hit is None:
                message = {"role": "assistant", "content": request.question}
                await flight.put({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
                continue
        hits[flight.hit.kind] += 1
        saved += request.tokens
        served += request.repeat
        found = flight.hit.body["choices"][0]["message"]["content"]
        wrong += groups[plain(found)] != groups[plain(request.question)]
    low, high = clopper_pearson(wrong, len(requests))
    return {
        "requests": len(requests),
        "repeats": round(sum(request.repeat for request in requests) / len(requests), 4),
        "hits": hits,
        "repeats_answered": round(served / sum(request.repeat for request in requests), 4),
        "tokens_saved": round(saved / sum(request.tokens for request in requests), 4),
        "wrong": round(wrong / len(requests), 4),
        "wrong_interval": [round(low, 4), round(high, 4)],
        "lookup_ms": _percentiles(times),
        "without_embedding_ms": _percentiles(without),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ranked = sorted(seconds)
    return {name: round(1000 * ranked[int(share * len(ranked))], 2) for name, share in (("p50", 0.5), ("p95", 0.95))}


def main() -> None:
    """Calibrate, replay, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument(
        "--repeats", type=Path, help="what is asked again comes from the pairs of this file that are the same; none calibrates"
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pairs = read_pairs(options.pairs)
    learnt, asked = split(pairs)
    folder = load_settings().cache_dir / "vectors"
    data = measure_pairs(learnt, folder, usable_cores(), lambda _step, _done, _of: None)
    calibration: Calibration = train({"half": data}, MultilingualE5.name)[0]
    repeats = [pair for pair in read_pairs(options.repeats) if pair.same] if options.repeats else None
    embed, groups = Embedder(), groups_of([*pairs, *(repeats or ())])
    results: dict[str, Any] = {}
    for name, verbatim in (("other words", False), ("mixed", True)):
        requests = workload(asked, options.requests, verbatim=verbatim, seed=options.seed, again=repeats)
        for population, bound in BOUNDS:
            try:
                matcher = Matcher(calibration, FACTS, bound, population)
            except BadCalibration as error:
                sys.stdout.write(f"{name}, {population} <= {bound}: {error}\n")
                continue
            told = asyncio.run(replay(requests, matcher, embed, groups))
            results[f"{name}, {population} <= {bound}"] = told
            sys.stdout.write(f"{name}, {population} <= {bound}: {json.dumps(told)}\n")
            sys.stdout.flush()
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
