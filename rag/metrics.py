"""Figures of rankings, as trec_eval defines them, and whether two systems differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METRICS = ("ndcg@10", "recall@5", "recall@20", "mrr@10")
ROUNDS = 10_000
SEED = 7
_BLOCK = 200  # rounds at a time: a few MB


def judge(ranking: Sequence[str], grades: Mapping[str, int]) -> tuple[float, ...]:
    """Return nDCG@10 (gain = grade), recall@5, recall@20 and MRR@10 of one ranking, in the order of METRICS.

    `grades` are the documents that answer the query, with grades above 0; there is at least one.
    """
    gains = [grades.get(name, 0) for name in ranking[:10]]
    first = next((rank for rank, gain in enumerate(gains, start=1) if gain), None)
    return (
        _discounted(gains) / _discounted(sorted(grades.values(), reverse=True)[:10]),
        sum(name in grades for name in ranking[:5]) / len(grades),
        sum(name in grades for name in ranking[:20]) / len(grades),
        1 / first if first else 0.0,
    )


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


@dataclass(frozen=True)
class Difference:
    """A mean difference over queries, its bootstrap 95% interval, and the p of a paired randomisation test (two-sided)."""

    mean: float
    low: float
    high: float
    p: float


def interval(figures: Any) -> tuple[float, float]:
    """Return the bootstrap 95% interval of the mean of one figure a query; of equal figures it has no width."""
    import numpy as np

    values = np.asarray(figures, dtype=np.float64)
    random, count = np.random.default_rng(SEED), len(values)
    means = [values[random.integers(0, count, (_BLOCK, count))].mean(axis=1) for _ in range(ROUNDS // _BLOCK)]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def compare(one: Any, other: Any) -> Difference:
    """Compare two systems by a figure of each query (arrays of the same queries in the same order): one - other."""
    import numpy as np

    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    random = np.random.default_rng(SEED)
    resampled: list[Any] = []
    extreme = 0
    for _ in range(ROUNDS // _BLOCK):
        resampled.append(differences[random.integers(0, count, (_BLOCK, count))].mean(axis=1))
        flipped = random.integers(0, 2, (_BLOCK, count)) * 2 - 1
        # Sums in another order differ in the last bits; a tie is as extreme.
        extreme += int((np.abs(flipped @ differences) / count >= abs(mean) - 1e-12).sum())
    low, high = np.quantile(np.concatenate(resampled), (0.025, 0.975))
    return Difference(mean, float(low), float(high), (extreme + 1) / (ROUNDS + 1))
