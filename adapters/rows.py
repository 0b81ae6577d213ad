"""Rows of {"text", "label"}: read from JSONL, split by a seed, and drawn as shots."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple


class RowError(ValueError):
    """A file of rows that cannot be used; the message names file, line and remedy."""


class Row(NamedTuple):
    """One text and the label that it should be given."""

    text: str
    label: str


def read_rows(path: Path) -> list[Row]:
    """Read a JSONL file, in its order; raises RowError for a line that is not {"text": ..., "label": ...}, and for no rows."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RowError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise RowError(f"{path}: {error.strerror}; name a JSONL file of text and label") from error
    rows = [_parse(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise RowError(f'{path} holds no rows; write one {{"text": ..., "label": ...}} a line')
    return rows


def _parse(where: str, line: str) -> Row:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise RowError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowError(f'{where}: expected an object {{"text": ..., "label": ...}}, got {type(row).__name__}')
    values: list[str] = []
    for key in Row._fields:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            given = "is missing" if key not in row else f"must be a text that is not empty, got {value!r}"
            raise RowError(f"{where}: {key!r} {given}")
        values.append(value)
    return Row(*values)


def labels_of(rows: list[Row]) -> list[str]:
    """Return the labels in the order of the alphabet."""
    return sorted({row.label for row in rows})


def split_rows(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (rows to train on, rows held out): `share` of each label, at least one row of every label that has two or more."""
    by_label: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    rng = random.Random(seed)  # noqa: S311  not for security
    kept: list[Row] = []
    held: list[Row] = []
    for label in sorted(by_label):
        group = rng.sample(by_label[label], len(by_label[label]))
        count = min(max(1, round(share * len(group))), len(group) - 1) if share > 0 else 0
        held += group[:count]
        kept += group[count:]
    return kept, held


def draw_shots(rows: list[Row], count: int, seed: int) -> list[int]:
    """Return the positions of `count` rows, drawn by the seed: no label comes twice before all came once."""
    rng = random.Random(seed)  # noqa: S311  not for security
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for position in rng.sample(range(len(rows)), len(rows)):
        by_label[rows[position].label].append(position)
    queues = rng.sample(list(by_label.values()), len(by_label))
    rounds = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    return rounds[:count]
