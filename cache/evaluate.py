"""How often a cache answers, and how often wrongly, on pairs with a judgement.

pairs: each pair by itself. Pairs that were put side by side because they are alike are harder than any traffic.
lookups: all first questions are cached; the second one of each pair that is the same is asked, and of each other pair the first
one while its own entry is left out. Right is an answer to a question that the judgements, taken together, call the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.agreement import FEATURES, Facts, measure
from cache.calibration import Calibration
from cache.intervals import clopper_pearson
from cache.judged import Pair
from cache.questions import Questions
from cache.semantic import CANDIDATES, LEAST_COSINE

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
COSINES = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
SHARES = (0.5, 0.8, 0.882, 0.95)
"""Shares of look-ups that are answered, at which precision is told. GPTCache's published run answers 0.882: 804 rightly and 77
wrongly of 999, at its threshold of 0.9."""


@dataclass(frozen=True)
class Candidates:
    """What a look-up may answer with: FEATURES (candidates, features), cosines, which is right, which is the pair's own row."""

    features: Any
    right: Any
    own: Any


@dataclass(frozen=True)
class Measured:
    """Pairs as numbers: FEATURES (pairs, features), labels, the group of same questions that each belongs to, and look-ups."""

    features: Any
    same: Any
    groups: Any
    lookups: list[Candidates]


def measured(pairs: Sequence[Pair], vectors: Any, facts: Facts) -> Measured:
    """Measure pairs; `vectors` are those of both questions: float32 (pairs, 2, dimensions)."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = (unit[:, 0] * unit[:, 1]).sum(axis=-1)
    features = [measure(pair.one, pair.other, float(cosine), facts) for pair, cosine in zip(pairs, cosines, strict=True)]
    groups = groups_of(pairs)
    cached, rows = Questions(), dict[str, int]()
    for row, pair in enumerate(pairs):
        if plain(pair.one) not in rows:
            rows[plain(pair.one)] = row
            cached.add(plain(pair.one), pair.one, unit[row, 0])
    lookups: list[Candidates] = []
    for row, pair in enumerate(pairs):
        asked = pair.other if pair.same else pair.one
        near = cached.nearest(unit[row, 1 if pair.same else 0], CANDIDATES + 1, LEAST_COSINE)
        found = [one for one in near if pair.same or one[0] != plain(asked)][:CANDIDATES]
        lookups.append(
            Candidates(
                np.array([measure(asked, text, cosine, facts) for _, text, cosine in found]).reshape(-1, len(FEATURES)),
                np.array([groups[plain(asked)] == groups[key] for key, _, _ in found], dtype=bool),
                np.array([rows[key] == row for key, _, _ in found], dtype=bool),
            )
        )
    same = np.array([pair.same for pair in pairs])
    return Measured(np.array(features), same, np.array([groups[plain(pair.one)] for pair in pairs]), lookups)


def likelihoods(features: Any, calibration: Calibration) -> Any:
    """Return the likelihood of each row of FEATURES."""
    return np.array([calibration.likelihood(row) for row in features])


def best(lookups: Sequence[Candidates], calibration: Calibration | None) -> tuple[Any, Any, Any]:
    """Return of each look-up the score of its best candidate, whether that is right, and whether it is the pair's own row.

    Without a calibration the score is the cosine.
    """
    rows: list[tuple[float, bool, bool]] = []
    for one in lookups:
        if not len(one.features):
            rows.append((0.0, False, False))
            continue
        scores = one.features[:, 0] if calibration is None else likelihoods(one.features, calibration)
        place = int(scores.argmax())
        rows.append((float(scores[place]), bool(one.right[place]), bool(one.own[place])))
    scores, right, own = zip(*rows, strict=True)
    return np.array(scores), np.array(right), np.array(own)


def report(data: Measured, calibration: Calibration) -> dict[str, Any]:
    """Return all figures, ready for JSON."""
    told: dict[str, Any] = {"count": len(data.same), "same": int(data.same.sum()), "embedder": calibration.embedder}
    calibrated = {
        f"{population} <= {bound:g}": threshold
        for population, of in calibration.thresholds.items()
        for bound, threshold in sorted(of.items())
    }
    if 0 < told["same"] < told["count"]:
        scores = likelihoods(data.features, calibration)
        told["pairs"] = {
            "auc": _auc(scores, data.same),
            "auc_cosine": _auc(data.features[:, 0], data.same),
            "calibrated": {name: {"threshold": t, **at(scores, data.same, data.same, t)} for name, t in calibrated.items()},
            "by_likelihood": {f"{t:g}": at(scores, data.same, data.same, t) for t in THRESHOLDS},
            "by_cosine": {f"{t:g}": at(data.features[:, 0], data.same, data.same, t) for t in COSINES},
        }
    scores, right, own = best(data.lookups, calibration)
    cosines, right_by_cosine, own_by_cosine = best(data.lookups, None)
    told["lookups"] = {
        "calibrated": {name: {"threshold": t, **at(scores, right, data.same, t)} for name, t in calibrated.items()},
        "by_likelihood": {f"{t:g}": at(scores, right, data.same, t) for t in THRESHOLDS},
        "by_cosine": {f"{t:g}": at(cosines, right_by_cosine, data.same, t) for t in COSINES},
        "precision_at": {
            f"{share:g}": {
                "likelihood": _precision(scores, right, share),
                "cosine": _precision(cosines, right_by_cosine, share),
                "likelihood_own_row": _precision(scores, own, share),
                "cosine_own_row": _precision(cosines, own_by_cosine, share),
            }
            for share in SHARES
        },
    }
    return told


def at(scores: Any, right: Any, same: Any, threshold: float) -> dict[str, Any]:
    """Return what a threshold gives: hits, precision, the share of repeats that are answered rightly, and of all wrongly."""
    hits = scores >= threshold
    count, good = int(hits.sum()), int((hits & right).sum())
    repeats, served, total = int(same.sum()), int((hits & right & same).sum()), len(same)
    return {
        "hits": count,
        "wrong": count - good,
        "hit_rate": _share(served, repeats),
        "wrong_rate": _share(count - good, total),
        "precision": _share(good, count),
    }


def _share(count: int, of: int) -> dict[str, float | None]:
    low, high = clopper_pearson(count, of)
    return {"share": round(count / of, 4) if of else None, "low": round(low, 4), "high": round(high, 4)}


def _precision(scores: Any, right: Any, share: float) -> float:
    order = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return round(float(right[order].mean()), 4) if len(order) else float("nan")


def _auc(scores: Any, same: Any) -> float:
    """Return the chance that a pair that is the same scores higher than one that is not; ties count half."""
    right, wrong = np.sort(scores[same]), np.sort(scores[~same])
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return round(float(below.sum() / (2 * len(right) * len(wrong))), 4)


def plain(text: str) -> str:
    """Return a text without what only its look has: case and spaces."""
    return " ".join(text.casefold().split())


def groups_of(pairs: Sequence[Pair]) -> dict[str, int]:
    """Return the group of each text (as `plain` has it): the same by any chain of judgements."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        one, other = root(plain(pair.one)), root(plain(pair.other))
        if pair.same:
            parent[one] = other
    numbers = {name: number for number, name in enumerate(sorted({root(text) for text in list(parent)}))}
    return {text: numbers[root(text)] for text in list(parent)}
