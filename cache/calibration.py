"""How likely two questions are to ask for the same answer, and from what likelihood on an old answer is given.

The weights are those of a logistic regression over `cache.agreement.FEATURES`. Some features are a veto whatever the others
say. Thresholds stand for bounds on wrong answers: `cache/train.py` makes them, and `calibration.yaml` says from what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from cache.agreement import FEATURES

VETOES = ("names", "numbers", "opposed")
"""Both have a name of their own; quantities differ; one denies the other. Hardly a pair of duplicates is lost by them."""
Population = Literal["pairs", "lookups"]
"""pairs: two questions that were put side by side because they are much alike, of which about a third are the same.
lookups: a question asked of a cache of many others, of which none or one is the same."""
DEFAULT = Path(__file__).with_name("calibration.yaml")
_VETOES = [FEATURES.index(name) for name in VETOES]


class BadCalibration(ValueError):
    """A calibration that cannot be used; the message says why."""


@dataclass(frozen=True)
class Calibration:
    """Weights for one embedding model, and thresholds: of each population, from a bound on wrong answers to a likelihood.

    A bound is on the share of look-ups that are answered wrongly, with 95% confidence.
    """

    embedder: str
    weights: Mapping[str, float]
    bias: float
    thresholds: Mapping[str, Mapping[float, float]]

    def likelihood(self, features: Sequence[float]) -> float:
        """Return the likelihood that two questions are the same; 0 where there is a veto."""
        if any(features[place] for place in _VETOES):
            return 0.0
        odds = self.bias + sum(self.weights.get(name, 0.0) * value for name, value in zip(FEATURES, features, strict=True))
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))

    def threshold(self, max_wrong: float, population: Population = "pairs") -> float:
        """Return the likelihood from which on no more than this share of look-ups is answered wrongly.

        Of the bounds that were calibrated the nearest below counts. Raises BadCalibration where there is none.
        """
        known = self.thresholds.get(population, {})
        fitting = [bound for bound in known if bound <= max_wrong + 1e-12]
        if not fitting:
            told = ", ".join(f"{bound:g}" for bound in sorted(known)) or "none"
            raise BadCalibration(f"no threshold for at most {max_wrong:g} wrong answers among {population}; calibrated: {told}")
        return known[max(fitting)]


def load_calibration(path: Path = DEFAULT, embedder: str | None = None) -> Calibration:
    """Read a calibration, and check that it is for this embedding model; raises BadCalibration."""
    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        calibration = Calibration(
            str(told["embedder"]),
            {str(name): float(weight) for name, weight in told["weights"].items()},
            float(told["bias"]),
            {str(name): {float(b): float(t) for b, t in of.items()} for name, of in told["thresholds"].items()},
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadCalibration(f"{path}: not a calibration: {type(error).__name__}: {error}") from error
    if unknown := set(calibration.weights) - set(FEATURES):
        raise BadCalibration(f"{path}: unknown features: {', '.join(sorted(unknown))}; make it anew: `ekiben cache train`")
    if embedder is not None and calibration.embedder != embedder:
        raise BadCalibration(
            f"{path} is for the embedding model {calibration.embedder!r}, not for {embedder!r}: `ekiben cache train` makes one"
        )
    return calibration
