"""Make a calibration from pairs with a judgement: weights, and thresholds for bounds on wrong answers.

The weights are a logistic regression over all sources. Thresholds are set on likelihoods of pairs that their weights have not
seen (folds by groups of same questions): the least from which on the upper end of the 95% interval of wrong answers, as a share
of all look-ups, stays under the bound. Needs scikit-learn. Nothing of the texts is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cache.agreement import FEATURES
from cache.calibration import VETOES, Calibration, Population
from cache.evaluate import Candidates, Measured, at, best, likelihoods
from cache.intervals import upper_bound

USED = ("cosine", "contained", "trigrams", "swapped", "named", "asked", "ending")
"""The features that get a weight: with the others beside them, pairs that were not trained on were judged no better."""
BOUNDS = (0.005, 0.01, 0.02, 0.025, 0.03, 0.05)
FOLDS = 5
LEAST_HITS = 20  # a threshold that fewer pass is not told from chance
_VETOES = [FEATURES.index(name) for name in VETOES]
_USED = [FEATURES.index(name) for name in USED]


def fit(sources: list[tuple[Any, Any]]) -> tuple[dict[str, float], float]:
    """Return weights and bias from features and labels of each source; every pair without a veto counts the same."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([rows[:, _USED] for rows, _ in sources])
    labels = np.concatenate([same for _, same in sources])
    free = ~np.concatenate([rows[:, _VETOES].any(axis=1) for rows, _ in sources])
    features, labels = features[free], labels[free]
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=1.0, max_iter=1000).fit((features - mean) / scale, labels)
    weights = model.coef_[0] / scale
    bias = float(model.intercept_[0] - weights @ mean)
    return {name: float(weight) for name, weight in zip(USED, weights, strict=True)}, bias


def samples(data: Measured, rows: Any = None) -> tuple[Any, Any]:
    """Return features and labels: of the pairs, and where all of them are the same, of the nearest others as different ones."""
    rows = np.ones(len(data.same), dtype=bool) if rows is None else rows
    features, labels = [data.features[rows]], [data.same[rows]]
    if data.same.all():
        for one in (one for one, kept in zip(data.lookups, rows, strict=True) if kept):
            others = one.features[~one.right]
            features.append(others)
            labels.append(np.zeros(len(others), dtype=bool))
    return np.concatenate(features), np.concatenate(labels)


def unseen(sources: Mapping[str, Measured], embedder: str) -> dict[str, list[tuple[Any, Calibration]]]:
    """Return of each source its folds (rows of it) with weights that were made without them."""
    parts: dict[str, list[tuple[Any, Calibration]]] = {name: [] for name in sources}
    for fold in range(FOLDS):
        held = {name: data.groups * 2654435761 % 2**32 % FOLDS == fold for name, data in sources.items()}
        weights, bias = fit([samples(data, ~held[name]) for name, data in sources.items()])
        for name in sources:
            parts[name].append((held[name], Calibration(embedder, weights, bias, {})))
    return parts


def scored(data: Measured, folds: list[tuple[Any, Calibration]], population: Population) -> tuple[Any, Any]:
    """Return scores of a population by weights that have not seen them, and what is right."""
    scores, right = np.zeros(len(data.same)), data.same.copy()
    for rows, calibration in folds:
        if population == "pairs":
            scores[rows] = likelihoods(data.features[rows], calibration)
        elif rows.any():
            chosen: list[Candidates] = [one for one, kept in zip(data.lookups, rows, strict=True) if kept]
            scores[rows], right[rows], _ = best(chosen, calibration)
    return scores, right


def threshold(scores: Any, right: Any, bound: float) -> float | None:
    """Return the least score from which on wrong answers stay under the bound; None where too few would be answered."""
    order = np.argsort(-scores, kind="stable")
    wrong = np.cumsum(~right[order])
    allowed = -1
    while upper_bound(allowed + 1, len(scores)) <= bound:
        allowed += 1
    hits = int((wrong <= allowed).sum())
    # Equal scores are answered together: the next one must be lower.
    while 0 < hits < len(scores) and scores[order[hits]] == scores[order[hits - 1]]:
        hits -= 1
    if hits < LEAST_HITS or scores[order[hits - 1]] <= 0.0:
        return None
    return float(scores[order[hits - 1]])


def train(sources: Mapping[str, Measured], embedder: str) -> tuple[Calibration, dict[str, Any]]:
    """Return the calibration, and the figures of what its weights have not seen: by fold, and of each source by the others.

    Thresholds come from the first source that has pairs of both labels: ValueError where none has.
    """
    hard = next((name for name, data in sources.items() if 0 < data.same.sum() < len(data.same)), None)
    if hard is None:
        raise ValueError("thresholds need a file with pairs of both labels; these have pairs of one only")
    folds = unseen(sources, embedder)
    thresholds: dict[str, dict[float, float]] = {}
    figures: dict[str, Any] = {}
    for population in ("pairs", "lookups"):
        scores, right = scored(sources[hard], folds[hard], population)
        found = {bound: threshold(scores, right, bound) for bound in BOUNDS}
        thresholds[population] = {bound: round(value + 1e-4, 4) for bound, value in found.items() if value is not None}
        figures[f"{hard}: {population}, out of fold"] = {
            f"{bound:g}": {"threshold": t, **at(scores, right, sources[hard].same, t)}
            for bound, t in thresholds[population].items()
        }
    for name, data in sources.items():
        others = [samples(other) for other_name, other in sources.items() if other_name != name]
        ways = {"out of fold": folds[name]}
        if any(0 < same.sum() < len(same) for _, same in others):
            ways["by the other sources"] = [(np.ones(len(data.same), dtype=bool), Calibration(embedder, *fit(others), {}))]
        for way, parts in ways.items():
            scores, right = scored(data, parts, "lookups")
            for share in (0.5, 0.882, 0.95):
                order = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
                figures.setdefault(f"{name}: precision of look-ups, {way}", {})[f"{share:g}"] = round(
                    float(right[order].mean()), 4
                )
    weights, bias = fit([samples(data) for data in sources.values()])
    return Calibration(embedder, weights, bias, thresholds), figures


def write(calibration: Calibration, sources: Mapping[str, Measured], path: Path) -> None:
    """Write a calibration as YAML."""
    told = {
        "embedder": calibration.embedder,
        "weights": {name: round(weight, 4) for name, weight in calibration.weights.items()},
        "bias": round(calibration.bias, 4),
        "thresholds": {
            population: {bound: round(value, 4) for bound, value in of.items()}
            for population, of in calibration.thresholds.items()
        },
    }
    head = "# Made by `ekiben cache train`; the keys are explained in cache/calibration.py. From:\n" + "".join(
        f"#   {name}: {len(data.same)} pairs, {int(data.same.sum())} of them the same\n" for name, data in sources.items()
    )
    path.write_text(head + yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
