"""Another question of the same scope that asks for the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache.agreement import Facts, measure
from cache.calibration import Calibration, Population
from cache.questions import Questions

CANDIDATES = 4  # nearest by vector, whose words are compared
LEAST_COSINE = 0.8  # under this nothing was ever the same; E5's cosines of strangers lie about 0.8


@dataclass(frozen=True)
class Match:
    """The key of a question that is the same, with what speaks for it."""

    key: str
    likelihood: float
    cosine: float


class Matcher:
    """Finds what is the same by vectors, words and `facts`, with at most `max_wrong` of the look-ups answered wrongly.

    The bound holds for questions as they were calibrated (`population`). Raises BadCalibration where it has none such.
    """

    def __init__(self, calibration: Calibration, facts: Facts, max_wrong: float = 0.01, population: Population = "pairs") -> None:
        self.threshold = calibration.threshold(max_wrong, population)
        self._calibration, self._facts = calibration, facts

    def matches(self, question: str, vector: Sequence[float], among: Questions) -> list[Match]:
        """Return the questions that pass, likeliest first."""
        found = (
            Match(key, self._calibration.likelihood(measure(question, text, cosine, self._facts)), cosine)
            for key, text, cosine in among.nearest(vector, CANDIDATES, LEAST_COSINE)
        )
        return sorted((match for match in found if match.likelihood >= self.threshold), key=lambda match: -match.likelihood)
