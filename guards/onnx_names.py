"""Names by a token-classification model in ONNX (see `guards.onnx_model` for its folder)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from guards.onnx_model import OnnxError, OnnxModel
from guards.pii import Span, without_overlaps

_ENTITIES = {
    "PER": "PERSON",
    "PERSON": "PERSON",
    "LOC": "LOCATION",
    "GPE": "LOCATION",
    "LOCATION": "LOCATION",
    "ORG": "ORGANIZATION",
}
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")


class OnnxNames:
    """A model whose labels are `O` and `B-`, `I-` before PER, PERSON, LOC, LOCATION, GPE or ORG.

    Raises OnnxError where it cannot be used or a package is missing.
    """

    def __init__(self, folder: Path, entities: Collection[str] = ("LOCATION", "PERSON"), threshold: float = 0.5) -> None:
        self._model = OnnxModel(folder, of="tokens")
        if not any(label[:2] == "B-" and label[2:].upper() in _ENTITIES for label in self._model.labels):
            msg = (
                f"{folder / 'config.json'}: of the labels {sorted(self._model.labels)} none is B- and one of "
                f"{', '.join(_ENTITIES)}; rename them in `id2label`"
            )
            raise OnnxError(msg)
        self._entities, self._threshold = frozenset(entities), threshold

    def find(self, text: str) -> list[Span]:
        """Return the names in a text, in order and without overlaps; scores are means of the tokens' probabilities.

        A name that the model finds in a part of a Latin word is the whole word. Raises OnnxError where the model fails.
        """
        spans = [_whole(text, span) for window in self._model.windows(text) for span in self._named(window)]
        return without_overlaps(
            span for span in spans if span.end > span.start and span.entity in self._entities and span.score >= self._threshold
        )

    def find_all(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return what `find` returns for each text."""
        return [self.find(text) for text in texts]

    def _named(self, window: Any) -> Iterator[Span]:
        chances = self._model.chances(window)
        rows = zip(chances.argmax(axis=-1), window.offsets, window.special_tokens_mask, strict=True)
        return merge(
            [
                (start, end, self._model.labels[label], float(chances[at, label]))
                for at, (label, (start, end), special) in enumerate(rows)
                if not special and end > start
            ]
        )


def merge(tokens: list[tuple[int, int, str, float]]) -> Iterator[Span]:
    """Join tokens (start, end, label, probability) into names: `B-` begins one, `I-` of the same kind goes on with it."""
    open_: list[tuple[int, int, str, float]] = []
    for token in [*tokens, (0, 0, "O", 0.0)]:
        kind = token[2][2:]
        if open_ and not (token[2].startswith("I-") and kind == open_[0][2][2:]):
            entity = _ENTITIES.get(open_[0][2][2:].upper())
            if entity:
                yield Span(open_[0][0], open_[-1][1], entity, sum(chance for *_, chance in open_) / len(open_))
            open_ = []
        if kind:
            open_.append(token)


def _whole(text: str, span: Span) -> Span:
    """Return a span without spaces at its ends, which some tokens hold, and with the whole of the words that it cuts."""
    found = text[span.start : span.end]
    start = span.start + len(found) - len(found.lstrip())
    end = max(start, span.end - (len(found) - len(found.rstrip())))
    if start < end and _LATIN.match(text, start):
        while start and _LATIN.match(text, start - 1):
            start -= 1
    if start < end and _LATIN.match(text, end - 1):
        while _LATIN.match(text, end):
            end += 1
    return Span(start, end, span.entity, span.score)
