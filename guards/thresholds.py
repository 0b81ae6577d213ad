"""Scores from which injection is flagged and blocked, by where the text comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["user", "passage", "tool", "output"]

FLAG, BLOCK = 0.4, 0.7


@dataclass(frozen=True)
class Thresholds:
    """Scores, 0 to 1: at most 5% of harmless texts are meant to reach `flag`, at most 1% `block`."""

    flag: float = FLAG
    block: float = BLOCK


# Documents of an unseen kind look more like attacks to a classifier than a user's questions do.
THRESHOLDS: dict[Source, Thresholds] = {
    "user": Thresholds(), "tool": Thresholds(0.5, 0.85), "passage": Thresholds(0.5, 0.85), "output": Thresholds(0.5, 0.85),
}  # fmt: skip
