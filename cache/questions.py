"""The questions of one scope with their vectors, to be searched by cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Questions:
    """Keys, texts and unit vectors: float32 (questions, dimensions), which grows by doubling."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._texts: list[str] = []
        self._places: dict[str, int] = {}
        self._vectors: Any = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, text: str, vector: Sequence[float]) -> None:
        """Add a question, or put it in the place of the one with this key; a vector of another length starts the whole anew."""
        given = np.asarray(vector, dtype=np.float32)
        if len(given) != self._vectors.shape[1]:
            self.__init__()
            self._vectors = np.zeros((16, len(given)), dtype=np.float32)
        place = self._places.setdefault(key, len(self._keys))
        if place == len(self._keys):
            self._keys.append(key)
            self._texts.append(text)
            if place == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._texts[place] = text
        self._vectors[place] = given / (float(np.linalg.norm(given)) or 1.0)

    def remove(self, key: str) -> None:
        """Forget a question; the last one takes its place."""
        place = self._places.pop(key, None)
        if place is None:
            return
        last_key, last_text = self._keys.pop(), self._texts.pop()
        if place < len(self._keys):
            self._keys[place], self._texts[place] = last_key, last_text
            self._places[last_key] = place
            self._vectors[place] = self._vectors[len(self._keys)]

    def nearest(self, vector: Sequence[float], count: int, least: float) -> list[tuple[str, str, float]]:
        """Return key, text and cosine of the nearest questions, best first, none under `least`."""
        asked = np.asarray(vector, dtype=np.float32)
        if not self._keys or len(asked) != self._vectors.shape[1]:
            return []
        cosines = self._vectors[: len(self._keys)] @ (asked / (float(np.linalg.norm(asked)) or 1.0))
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(self._keys[i], self._texts[i], float(cosines[i])) for i in best if cosines[i] >= least]
