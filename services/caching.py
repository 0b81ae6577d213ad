"""The answer cache as a box has it: what `cache` asks of questions' numbers and negations, answered by `guards`."""

from __future__ import annotations

from cache.agreement import Facts
from guards.normalize import normalize
from guards.polarity import contradicts
from guards.quantities import Quantity, find_quantities, occurs


def _quantities(text: str) -> list[Quantity]:
    # "one" and 一 are articles more often than numbers.
    return [q for q in find_quantities(normalize(text).text) if not (q.dimension == "number" and q.value == 1)]


def differ_in_numbers(one: str, other: str) -> bool:
    """Whether a quantity of either question is not in the other, in any spelling."""
    left, right = _quantities(one), _quantities(other)
    return not (all(occurs(q, right) for q in left) and all(occurs(q, left) for q in right))


def oppose(one: str, other: str) -> bool:
    """Whether a question denies what the other says, or says the opposite of it."""
    return contradicts(one, other) or contradicts(other, one)


FACTS = Facts(differ_in_numbers, oppose)
