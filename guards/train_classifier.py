"""Train the injection classifier: `python -m guards.train_classifier --data train.jsonl --dev dev.jsonl`.

Needs scikit-learn (dependency group `train`). Rows are {"text", "label", "source", "licence"}; those whose licence says
"evaluation only" or "unstated" train nothing. The rows of --dev count more and say which sources set the scale of the scores:
by five-fold cross-validation, repeated with other folds, in which texts with a common beginning stay together. Deterministic.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guards.classifier import BITS, FEATURES, bare, is_chinese
from guards.injection import scan
from guards.synthetic import Grammar, synthesize
from guards.thresholds import BLOCK, FLAG
from guards.views import read_folded

FOLDS = 5
SEEDS = (0, 1, 2)  # of the folds that set the scale
DEV_WEIGHT, MADE_WEIGHT = 12.0, 0.25
STRENGTH, TOLERANCE = 30.0, 0.01  # inverse of the regularisation; where the solver stops: a hundredth of it changes no figure
# Shares of harmless texts allowed above the block and the flag threshold, by language: below the aims of 1% and 5%, as a margin.
ALLOWED = {"en": (0.008, 0.048), "zh": (0.010, 0.030)}
MADE = "synthetic"
_HERE = Path(__file__).parent / "classifier"
_CLOSED = re.compile("evaluation only|unstated")


@dataclass(frozen=True)
class Row:
    """A text as the classifier sees it. `rule` is the score of the rules, `trains` is False for closed licences."""

    text: str
    label: int
    source: str
    licence: str
    weight: float
    trains: bool
    dev: bool
    rule: float = 0.0


def read_rows(path: Path, *, dev: bool) -> list[Row]:
    """Read rows of JSON; raises ValueError naming the line."""
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            text, licence = bare(read_folded(row["text"])), row["licence"]
            opened = not _CLOSED.search(licence)
            weight = DEV_WEIGHT if dev else 1.0
            rule = scan(row["text"]).score if dev else 0.0
            rows.append(Row(text, int(row["label"]), row["source"], licence, weight, opened, dev, rule))
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{path}:{number} is not a row with text, label, source and licence: {error}"
            raise ValueError(msg) from error
    return rows


def made_rows(rows: list[Row], grammar: Path) -> list[Row]:
    """Return synthetic rows; mixtures are made of harmless rows that may train and are not in --dev."""
    base = [row.text for row in rows if row.trains and not row.dev and row.label == 0]
    chinese = {text: is_chinese(text) for text in base}
    harmless: dict[Any, list[str]] = {"zh": [t for t in base if chinese[t]], "en": [t for t in base if not chinese[t]]}
    made = synthesize(Grammar.read(grammar), harmless)
    return [Row(bare(read_folded(m.text)), m.label, MADE, "own", MADE_WEIGHT, trains=True, dev=False) for m in made]


@dataclass(frozen=True)
class Fit:
    """What a head learnt: gain and weight of each block, and the bias."""

    gains: list[NDArray[np.float16]]
    weights: list[NDArray[np.float16]]
    bias: float


class Bench:
    """The rows of one head with their features, and fits on parts of them."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.labels = np.array([row.label for row in rows])
        self.weights = np.array([row.weight for row in rows])
        self.trains = np.array([row.trains for row in rows])
        self.dev = np.array([row.dev for row in rows])
        self.rules = np.array([row.rule for row in rows])
        self.sources = np.array([row.source for row in rows])
        self.blocks: list[Any] = [_counts([find(row.text) for row in rows]) for find in FEATURES.values()]

    def fit(self, chosen: NDArray[np.bool_]) -> Fit:
        """Fit on the chosen rows that may train."""
        from scipy import sparse
        from sklearn.linear_model import LogisticRegression

        chosen = chosen & self.trains
        labels, weights = self.labels[chosen], self.weights[chosen]
        blocks = [block[chosen] for block in self.blocks]
        gains = [_gain(block, labels, weights) for block in blocks]
        features = sparse.hstack([_unit(block, gain) for block, gain in zip(blocks, gains, strict=True)]).tocsr()
        model = LogisticRegression(C=STRENGTH, solver="liblinear", max_iter=200, tol=TOLERANCE, random_state=0)
        model.fit(features, labels, weights)
        weight, bias = np.asarray(model.coef_)[0].astype(np.float16), np.asarray(model.intercept_)
        return Fit(gains, np.split(weight, len(blocks)), float(bias[0]))

    def raw(self, fit: Fit, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the raw values of the chosen rows."""
        values = np.full(int(chosen.sum()), fit.bias)
        for block, gain, weight in zip(self.blocks, fit.gains, fit.weights, strict=True):
            values += _unit(block[chosen], gain) @ weight.astype(np.float64)
        return values

    def cross_validated(self, seed: int) -> NDArray[np.float64]:
        """Return the raw value of every row from a fit without its fold; made texts, which are in every fit, have nan."""
        folds = np.array([-1 if row.source == MADE else fold(row.text, seed) for row in self.rows])
        values = np.full(len(self.rows), np.nan)
        for held in range(FOLDS):
            values[folds == held] = self.raw(self.fit(folds != held), folds == held)
        return values

    def likeness(self) -> NDArray[np.float64]:
        """Return what each harmless row counts for the scale: sources as often as in --dev, with all rows there are of them."""
        counts = np.zeros(len(self.rows))
        for source in set(self.sources[self.dev]):
            same = (self.sources == source) & (self.labels == 0)
            counts[same] = (same & self.dev).sum() / max(1, same.sum())
        return counts

    def without_source(self, source: str) -> NDArray[np.float64]:
        """Return the raw values of a source's --dev rows from a fit that has seen no row of that source's family."""
        family = _family(source)
        kin = np.array([_family(other) == family for other in self.sources])
        return self.raw(self.fit(~kin), self.dev & (self.sources == source))


def scale(harmless: NDArray[np.float64], counts: NDArray[np.float64], allowed: tuple[float, float]) -> tuple[float, float]:
    """Return slope and shift that put the flag and the block threshold where few enough harmless texts lie above.

    `counts` says how many texts each of the values stands for, `allowed` which shares may lie above block and flag.
    """
    order = np.argsort(-harmless)
    above = np.cumsum(counts[order]) / counts.sum()
    block, flag = (float(harmless[order][np.searchsorted(above, share, side="right")]) + 1e-3 for share in allowed)
    block = max(block, flag + 0.2)
    slope = (_logit(BLOCK) - _logit(FLAG)) / (block - flag)
    return slope, _logit(FLAG) - slope * flag


def fold(text: str, seed: int) -> int:
    """Return the fold of a text, 0 to 4: by its first 40 letters, so that copies of one template stay together."""
    start = re.sub(r"\W+", "", text)[:40]
    return int(hashlib.sha256(f"{seed}:{start}".encode("utf-8", "surrogatepass")).hexdigest(), 16) % FOLDS


def _counts(grams: list[NDArray[np.int64]]) -> Any:
    from scipy import sparse

    found = [np.unique(one, return_counts=True) for one in grams]
    ends = np.concatenate(([0], np.cumsum([len(buckets) for buckets, _ in found])))
    values = 1 + np.log(np.concatenate([counts for _, counts in found]))
    return sparse.csr_matrix((values, np.concatenate([buckets for buckets, _ in found]), ends), shape=(len(grams), 2**BITS))


def _gain(counts: Any, labels: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float16]:
    present = counts.copy()
    present.data[:] = 1
    attacks: Any = present.T @ (weights * labels)
    harmless: Any = present.T @ (weights * (1 - labels))
    ratio: Any = np.log((1 + attacks) / np.sum(1 + attacks)) - np.log((1 + harmless) / np.sum(1 + harmless))
    return np.where(attacks + harmless > 0, np.abs(ratio) + 0.3, 0).astype(np.float16)


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _unit(counts: Any, gain: NDArray[np.float16]) -> Any:
    from scipy import sparse

    weighted = counts.multiply(gain.astype(np.float64)[None, :]).tocsr()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ weighted


def _family(source: str) -> str:
    return re.split(r"[/_:(@+]|-mt", source.replace("PurpleLlama/", ""))[0]


def report(bench: Bench, values: NDArray[np.float64], slope: float, shift: float) -> dict[str, Any]:
    """Return shares blocked and flagged by source: cross-validated, and with the source left out, the classifier alone."""
    rows: dict[str, Any] = {}
    for source, label in sorted({(r.source, r.label) for r in bench.rows if r.dev}):
        chosen = bench.dev & (bench.sources == source)
        same = bench.labels[chosen] == label
        shares: list[float] = []
        for raw in (values[chosen][same], bench.without_source(source)[same]):
            scores = _together(raw, np.zeros(len(raw)), slope, shift)
            shares += [float((scores >= BLOCK).mean()), float((scores >= FLAG).mean())]
        rows[f"{source} ({label})"] = {"n": int(same.sum()), "shares": [round(s, 2) for s in shares]}
    return rows


def _together(values: NDArray[np.float64], rules: NDArray[np.float64], slope: float, shift: float) -> NDArray[np.float64]:
    return 1 - (1 - 1 / (1 + np.exp(-(slope * values + shift)))) * (1 - rules)


def _rates(hit: NDArray[np.bool_], attack: NDArray[np.bool_]) -> dict[str, float]:
    return {"recall": round(float(hit[attack].mean()), 3), "fpr": round(float(hit[~attack].mean()), 4)}


def main() -> None:
    """Train; write the weights, and beside them as JSON what they were made of and how good they are."""
    parser = argparse.ArgumentParser(description="Train the injection classifier.")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSON lines to train on")
    parser.add_argument("--dev", type=Path, nargs="+", required=True, help="JSON lines like the texts to be expected")
    parser.add_argument("--out", type=Path, default=_HERE / "weights.npz")
    parser.add_argument("--by-source", action="store_true", help="also leave out each source in turn: minutes")
    options = parser.parse_args()
    rows = [row for dev, paths in ((False, options.data), (True, options.dev)) for p in paths for row in read_rows(p, dev=dev)]
    rows += made_rows(rows, _HERE / "grammar.yaml")
    arrays: dict[str, Any] = {}
    card: dict[str, Any] = {
        "inputs": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in [*options.data, *options.dev]},
        "rows": dict(collections.Counter(f"{r.source} | {r.licence} | {r.label}" for r in rows if r.trains)),
    }
    for name, chinese in (("en", False), ("zh", True)):
        bench = Bench([row for row in rows if is_chinese(row.text) == chinese])
        runs = [bench.cross_validated(seed) for seed in SEEDS]
        harmless = np.flatnonzero(bench.likeness())
        values, counts = np.concatenate([run[harmless] for run in runs]), np.tile(bench.likeness()[harmless], len(runs))
        slope, shift = scale(values, counts, ALLOWED[name])
        fit = bench.fit(np.ones(len(bench.rows), dtype=bool))
        for kind, gain, weight in zip(FEATURES, fit.gains, fit.weights, strict=True):
            arrays |= {f"{name}_{kind}_gain": gain, f"{name}_{kind}_weight": weight}
        arrays[f"{name}_scale"] = np.array([fit.bias, slope, shift])
        scores = np.concatenate([_together(run, bench.rules, slope, shift)[bench.dev] for run in runs])
        attack = np.tile(bench.labels[bench.dev] == 1, len(runs))
        card[name] = {threshold: _rates(scores >= at, attack) for threshold, at in (("block", BLOCK), ("flag", FLAG))}
        if options.by_source:
            card[name]["by_source"] = report(bench, runs[0], slope, shift)
        sys.stderr.write(f"{name}: {card[name]['block']} {card[name]['flag']}\n")
    np.savez_compressed(options.out, **arrays)
    options.out.with_suffix(".json").write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
