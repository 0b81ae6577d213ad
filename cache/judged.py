"""Pairs of questions with a judgement: do both ask for the same answer?"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = (("a", "b"), ("question1", "question2"), ("origin", "similar"))
"""Names under which a row has its questions; those of the last form may stand without a label and are then the same."""
_LABELS = {0: False, 1: True, "0": False, "1": True, "same": True, "different": False}


class BadPairs(ValueError):
    """A file of judged pairs that cannot be used; the message names the line."""


@dataclass(frozen=True)
class Pair:
    """Two questions, and whether one answer serves both."""

    one: str
    other: str
    same: bool


def read_pairs(path: Path) -> list[Pair]:
    """Read JSONL, also .gz: a line each of {a, b, label} with a label of 1 or 0, true or false, "same" or "different".

    Raises BadPairs.
    """
    pairs = [_pair(where, line) for where, line in _lines(path)]
    if not pairs:
        raise BadPairs(f"{path}: no pairs: a line each of {{a, b, label}} is wanted")
    return pairs


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadPairs(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _pair(where: str, line: str) -> Pair:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadPairs(f"{where}: no JSON: {error}") from error
    form = next((form for form in FORMS if isinstance(row, dict) and set(form) <= set(row)), None)
    if form is None:
        raise BadPairs(f"{where}: wanted is an object with `a`, `b` and `label`")
    one, other = (row[name] for name in form)
    for name, text in zip(form, (one, other), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise BadPairs(f"{where}: `{name}` must be a text that is not empty")
    label = row.get("label", 1 if form == FORMS[-1] else None)
    if not isinstance(label, int | str) or label not in _LABELS:
        raise BadPairs(f'{where}: `label` must be 1 or 0, true or false, "same" or "different", and is {label!r}')
    return Pair(one, other, _LABELS[label])
