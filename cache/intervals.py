"""Exact confidence intervals of a share."""

from __future__ import annotations

import math
from collections.abc import Callable

CONFIDENCE = 0.95


def clopper_pearson(count: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact two-sided interval of a share of which `count` of `of` were seen; (0, 1) where nothing was.

    Clopper and Pearson (1934): each end is the share under which what was seen, or more extreme, has half the error.
    """
    if of == 0:
        return 0.0, 1.0
    error = (1 - confidence) / 2
    low = 0.0 if count == 0 else _solve(lambda share: 1 - _at_most(count - 1, of, share) - error)
    high = 1.0 if count == of else _solve(lambda share: error - _at_most(count, of, share))
    return low, high


def upper_bound(count: int, of: int, confidence: float = CONFIDENCE) -> float:
    """Return what the share is not above, with this confidence (one-sided, exact)."""
    return clopper_pearson(count, of, 2 * confidence - 1)[1]


def _at_most(count: int, of: int, share: float) -> float:
    """Return the probability of at most `count` successes in `of` trials."""
    odds, rest = math.log(share), math.log1p(-share)
    whole = math.lgamma(of + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * odds + (of - k) * rest) for k in range(count + 1)
    )
    return min(1.0, math.fsum(terms))


def _solve(rising: Callable[[float], float]) -> float:
    """Return the root of a function that rises from below 0 to above 0 between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
