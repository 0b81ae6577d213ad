"""Which target is asked first, and in what order the others follow when it fails.

Every strategy takes candidates as they are now and returns all of them, best first; those that are not healthy come last,
since a health check may be wrong and nothing better is left then.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Chance = Callable[[], float]
_HASHES = 2**52


@dataclass(frozen=True)
class Candidate:
    """A target as it is now; times are moving averages in seconds, None where nothing (or nothing of late) is known."""

    name: str
    weight: float = 1.0
    """Its share of the requests, or its size among replicas; 0 is asked only when others fail."""
    price_in: float = 0.0
    """Of 1000 tokens of prompt, in any one currency."""
    price_out: float = 0.0
    """Of 1000 tokens of answer."""
    in_flight: int = 0
    ttft: float | None = None
    """From the request to its first token."""
    latency: float | None = None
    """From the request to its last token."""
    healthy: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0 and self.price_in >= 0 and self.price_out >= 0):
            raise ValueError(f"the target {self.name!r} has a weight or a price that is negative or no number")

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Return the price of a request of so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1000


def fixed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return them as they were given."""
    return _healthy_first(candidates)


def weighted(candidates: Sequence[Candidate], key: str | None = None, chance: Chance = random.random) -> list[Candidate]:
    """Return them at random in proportion to their weights; with a `key`, always alike for that key.

    Weighted rendezvous hashing: when a target leaves, only its own keys go elsewhere, spread over the others by weight; when a
    weight grows, keys only go to that target.
    """
    drawn = key if key is not None else str(chance())
    return _healthy_first(sorted(candidates, key=lambda candidate: -rendezvous(drawn, candidate.name, candidate.weight)))


def least_busy(candidates: Sequence[Candidate], chance: Chance = random.random) -> list[Candidate]:
    """Return the less busy of two drawn by weight, then the others by how busy they are: the power of two choices.

    Busy is requests in flight for each unit of weight. Two are drawn, because gateways that all took the least busy target
    would all take the same one. Source: Mitzenmacher 2001.
    """
    order = weighted(candidates, chance=chance)
    usable = [candidate for candidate in order if candidate.healthy and candidate.weight > 0]
    first = min(usable[:2], key=_busy, default=None)
    rest = sorted((candidate for candidate in order if candidate is not first), key=_busy)
    return _healthy_first([first, *rest] if first is not None else rest)


def cheapest(
    candidates: Sequence[Candidate], *, tokens_in: float, tokens_out: float, budget: float | None = None, whole: bool = False
) -> list[Candidate]:
    """Return by price those expected within `budget` seconds, then the slower ones by time.

    The time is that to the first token, or to the last when `whole`. A target whose time is not known counts as within, so that
    it comes to be known; equal prices go to the less busy.
    """

    def seconds(candidate: Candidate) -> float:
        known = candidate.latency if whole else candidate.ttft
        return 0.0 if known is None else known

    def rank(candidate: Candidate) -> tuple[bool, float, float]:
        late = budget is not None and seconds(candidate) > budget
        return late, seconds(candidate) if late else candidate.cost(tokens_in, tokens_out), _busy(candidate)

    return _healthy_first(sorted(candidates, key=rank))


def by_complexity(candidates: Sequence[Candidate], score: float, thresholds: Sequence[float]) -> list[Candidate]:
    """Return first the target whose band holds the score, then the stronger ones, then the weaker ones, strongest first.

    `candidates` go from weak to strong; a score at or over thresholds[i] is too hard for candidate i. Raises ValueError when
    there is not one threshold fewer than candidates, or they do not ascend.
    """
    if len(thresholds) != len(candidates) - 1:
        raise ValueError(f"{len(candidates)} targets by complexity need {len(candidates) - 1} thresholds, not {len(thresholds)}")
    if any(low > high for low, high in pairwise(thresholds)):
        raise ValueError("the thresholds by complexity must ascend")
    chosen = sum(score >= threshold for threshold in thresholds)
    return _healthy_first([*candidates[chosen:], *reversed(candidates[:chosen])])


def rendezvous(key: str, name: str, weight: float = 1.0) -> float:
    """Return how strongly a name draws a key, -inf for weight 0: the highest of all names has it in proportion to the weights.

    Source: Thaler and Ravishankar 1998; the weights after Schindelhauer and Schomaker 2005.
    """
    if weight <= 0:
        return -math.inf
    digest = hashlib.blake2b(f"{len(name)}:{name}{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # 52 bits and a half: a float holds them, so the share is never 0 nor 1.
    share = ((int.from_bytes(digest) >> 12) + 0.5) / _HASHES
    return weight / -math.log(share)


def _busy(candidate: Candidate) -> float:
    return candidate.in_flight / candidate.weight if candidate.weight > 0 else math.inf


def _healthy_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: not candidate.healthy)
