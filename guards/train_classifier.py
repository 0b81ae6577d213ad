"""Train the injection classifier: `python -m guards.train_classifier --data train.jsonl --dev dev.jsonl`.

Needs scikit-learn (dependency group `train`). Rows are {"text", "label", "source", "licence"}; those whose licence says
"evaluation only" or "unstated" train nothing. The rows of --dev count more and set the scale of the scores: by five-fold
cross-validation in which texts with a common beginning stay together. Deterministic.
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

from guards.classifier import BITS, is_chinese, ngrams
from guards.synthetic import Grammar, synthesize
from guards.thresholds import BLOCK, FLAG
from guards.views import read_folded

FOLDS = 5
DEV_WEIGHT, MADE_WEIGHT = 12.0, 0.25
STRENGTH = 30.0  # inverse of the regularisation
BLOCKED, FLAGGED = 0.008, 0.045  # shares of harmless --dev texts allowed above the two thresholds: below the aims, as a margin
_HERE = Path(__file__).parent / "classifier"
_CLOSED = re.compile("evaluation only|unstated")


@dataclass(frozen=True)
class Row:
    """A text as the classifier sees it. `fold` is -1 for made texts; `trains` is False for closed licences."""

    text: str
    label: int
    source: str
    licence: str
    weight: float
    fold: int
    trains: bool
    dev: bool


def read_rows(path: Path, *, dev: bool) -> list[Row]:
    """Read rows of JSON; raises ValueError naming the line."""
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            text, licence = read_folded(row["text"]), row["licence"]
            opened = not _CLOSED.search(licence)
            weight = DEV_WEIGHT if dev else 1.0
            rows.append(Row(text, int(row["label"]), row["source"], licence, weight, _fold(text), opened, dev))
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
    own = "own"
    return [Row(read_folded(m.text), m.label, "synthetic", own, MADE_WEIGHT, -1, trains=True, dev=False) for m in made]


class Bench:
    """The rows of one head with their features, and fits on parts of them."""

    def __init__(self, rows: list[Row]) -> None:
        from scipy import sparse

        self.rows = rows
        self.labels = np.array([row.label for row in rows])
        self.weights = np.array([row.weight for row in rows])
        self.folds = np.array([row.fold for row in rows])
        self.trains = np.array([row.trains for row in rows])
        self.dev = np.array([row.dev for row in rows])
        self.sources = np.array([row.source for row in rows])
        indices, values, ends = [], [], [0]
        for row in rows:
            buckets, counts = np.unique(ngrams(row.text), return_counts=True)
            indices.append(buckets)
            values.append(1 + np.log(counts))
            ends.append(ends[-1] + len(buckets))
        parts = (np.concatenate(values), np.concatenate(indices), np.array(ends))
        self.counts: Any = sparse.csr_matrix(parts, shape=(len(rows), 2**BITS))

    def fit(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float16], NDArray[np.float16], float]:
        """Fit on the chosen rows that may train; return gain, weight and bias."""
        from sklearn.linear_model import LogisticRegression

        chosen = chosen & self.trains
        counts, labels, weights = self.counts[chosen], self.labels[chosen], self.weights[chosen]
        present = counts.copy()
        present.data[:] = 1
        attacks: Any = present.T @ (weights * labels)
        harmless: Any = present.T @ (weights * (1 - labels))
        ratio: Any = np.log((1 + attacks) / np.sum(1 + attacks)) - np.log((1 + harmless) / np.sum(1 + harmless))
        gain = np.where(attacks + harmless > 0, np.abs(ratio) + 0.3, 0).astype(np.float16)
        model = LogisticRegression(C=STRENGTH, solver="liblinear", max_iter=200, random_state=0)
        model.fit(_unit(counts, gain), labels, weights)
        weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        return gain, weight[0].astype(np.float16), float(bias[0])

    def raw(self, fitted: tuple[NDArray[np.float16], NDArray[np.float16], float], chosen: NDArray[np.bool_]) -> Any:
        """Return the raw values of the chosen rows."""
        gain, weight, bias = fitted
        return _unit(self.counts[chosen], gain) @ weight.astype(np.float64) + bias

    def cross_validated(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the raw value of every --dev row from a fit without its fold, and which rows these are."""
        values = np.zeros(len(self.rows))
        for fold in range(FOLDS):
            held = (self.folds == fold) & self.dev
            values[held] = self.raw(self.fit(self.folds != fold), held)
        return values, self.dev

    def without_source(self, source: str) -> NDArray[np.float64]:
        """Return the raw values of a source's --dev rows from a fit that has seen no row of that source's family."""
        family = _family(source)
        kin = np.array([_family(other) == family for other in self.sources])
        return self.raw(self.fit(~kin), self.dev & (self.sources == source))


def scale(values: NDArray[np.float64], labels: NDArray[Any]) -> tuple[float, float]:
    """Return slope and shift that put the flag and the block threshold where few enough harmless texts lie above."""
    harmless = np.sort(values[labels == 0])[::-1]
    block, flag = (float(harmless[int(share * len(harmless))]) + 1e-3 for share in (BLOCKED, FLAGGED))
    block = max(block, flag + 0.2)
    slope = (_logit(BLOCK) - _logit(FLAG)) / (block - flag)
    return slope, _logit(FLAG) - slope * flag


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _unit(counts: Any, gain: NDArray[np.float16]) -> Any:
    from scipy import sparse

    weighted = counts.multiply(gain.astype(np.float64)[None, :]).tocsr()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ weighted


def _fold(text: str) -> int:
    start = re.sub(r"\W+", "", text)[:40]
    return int(hashlib.sha256(start.encode("utf-8", "surrogatepass")).hexdigest(), 16) % FOLDS


def _family(source: str) -> str:
    return re.split(r"[/_:(@+]|-mt", source.replace("PurpleLlama/", ""))[0]


def report(bench: Bench, values: NDArray[np.float64], slope: float, shift: float) -> dict[str, Any]:
    """Return shares blocked and flagged by source: cross-validated, and with the source left out."""
    rows: dict[str, Any] = {}
    for source, label in sorted({(r.source, r.label) for r in bench.rows if r.dev}):
        chosen = bench.dev & (bench.sources == source)
        same = bench.labels[chosen] == label
        shares: list[float] = []
        for raw in (values[chosen][same], bench.without_source(source)[same]):
            scores = 1 / (1 + np.exp(-(slope * raw + shift)))
            shares += [float((scores >= BLOCK).mean()), float((scores >= FLAG).mean())]
        rows[f"{source} ({label})"] = {"n": int(same.sum()), "shares": [round(s, 2) for s in shares]}
    return rows


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
        values, dev = bench.cross_validated()
        slope, shift = scale(values[dev], bench.labels[dev])
        gain, weight, bias = bench.fit(np.ones(len(bench.rows), dtype=bool))
        arrays |= {f"{name}_gain": gain, f"{name}_weight": weight, f"{name}_scale": np.array([bias, slope, shift])}
        scores = 1 / (1 + np.exp(-(slope * values[dev] + shift)))
        attack = bench.labels[dev] == 1
        card[name] = {threshold: _rates(scores >= at, attack) for threshold, at in (("block", BLOCK), ("flag", FLAG))}
        if options.by_source:
            card[name]["by_source"] = report(bench, values, slope, shift)
        sys.stderr.write(f"{name}: {card[name]['block']} {card[name]['flag']}\n")
    np.savez_compressed(options.out, **arrays)
    options.out.with_suffix(".json").write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
