"""What personal data looks like: a regular expression, a score, and the words that may stand before it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTEXT = 16  # characters before a value in which words may speak for it; what follows is not known yet in a stream
BOOST = 0.35  # what they add to its score; Presidio's own figure

# The digits and letters of ASCII end a value, Chinese characters do not.
BEFORE, AFTER = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"


@dataclass(frozen=True)
class Pattern:
    """One form of an entity: the value is group 1 of `regex`, or all of it where there is no group.

    `check` scores a value better, or rejects it with None. `context` matches words before a value that raise its score by
    `BOOST`; a score under a policy's threshold thus needs them. `needs` is what a text must contain for a search to be worth it.
    """

    entity: str
    regex: str
    score: float
    context: str = ""
    check: Callable[[str], float | None] | None = None
    needs: str = r"[0-9]"

    def find(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Yield start, end (exclusive) and score of each value in a normalised text."""
        for match in _compiled(self.regex).finditer(text):
            start, end = match.span(match.re.groups and 1)
            score = self.check(text[start:end]) if self.check else self.score
            if score is None:
                continue
            if self.context and _compiled(self.context).search(text, max(0, start - CONTEXT), start):
                score = min(1.0, score + BOOST)
            yield start, end, score

    def possible(self, text: str) -> bool:
        """Whether a search of this text is worth it."""
        return _compiled(self.needs).search(text) is not None


@functools.lru_cache(maxsize=256)
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.ASCII | re.IGNORECASE if regex.startswith("(?i)") else re.ASCII)


def digits(value: str) -> str:
    """Return the digits of a value."""
    return "".join(char for char in value if char.isdigit())


def luhn(value: str) -> bool:
    """Whether the digits of a card number satisfy the Luhn check."""
    numbers = [int(digit) for digit in digits(value)]
    doubled = (sum(divmod(2 * number, 10)) for number in numbers[-2::-2])
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0
