"""How good the guards are on labelled rows: injection by recall and false alarms, personal data by type.

A row is JSON: {"text", "lang"} with "label" (1 an attack, 0 harmless) and perhaps "kind", or with "spans" of {"start",
"end", "type"}, or with both.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guards.injection import assess
from guards.pii import ENTITIES, Span, find_pii
from guards.thresholds import THRESHOLDS, Source

PII_THRESHOLD = 0.4  # the default of guard policies
Finder = Callable[[str], Sequence[Span]]

# What a type of the data may be called by a detector; a type that is not here has its own name only.
SAME_TYPE: dict[str, frozenset[str]] = {
    "EMAIL": frozenset({"EMAIL_ADDRESS"}),
    "PHONE": frozenset({"PHONE_NUMBER", "CN_MOBILE", "CN_LANDLINE"}),
    "CREDIT_CARD": frozenset({"CN_BANK_CARD"}),
    "IBAN": frozenset({"IBAN_CODE"}),
    "IP": frozenset({"IP_ADDRESS"}),
    "ADDRESS": frozenset({"CN_ADDRESS", "LOCATION"}),
    "LOCATION": frozenset({"ADDRESS", "CN_ADDRESS"}),
    "CN_PASSPORT": frozenset({"PASSPORT"}),
}


class EvaluationError(ValueError):
    """Rows that cannot be judged; the message names file and line."""


@dataclass(frozen=True)
class Gold:
    """Personal data as a row marks it."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Row:
    """One text with what is true of it; `label` and `spans` are None where the row does not say."""

    text: str
    lang: str
    kind: str
    label: int | None
    spans: tuple[Gold, ...] | None


def read_rows(path: Path) -> list[Row]:
    """Read rows of JSON; raises EvaluationError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise EvaluationError(msg) from error
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        msg = f"{path} has no rows"
        raise EvaluationError(msg)
    return rows


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        text, label, spans = row["text"], row.get("label"), row.get("spans")
        golds = None if spans is None else tuple(Gold(int(s["start"]), int(s["end"]), str(s["type"])) for s in spans)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f'{where} is not a JSON object with "text" and "label" or "spans": {error!r}'
        raise EvaluationError(msg) from error
    if not isinstance(text, str) or (label is None and golds is None) or label not in (None, 0, 1):
        msg = f'{where} needs "text", and a "label" of 0 or 1 or "spans"'
        raise EvaluationError(msg)
    if any(not 0 <= gold.start < gold.end <= len(text) for gold in golds or ()):
        msg = f"{where} has a span outside of its text"
        raise EvaluationError(msg)
    return Row(text, str(row.get("lang", "")), str(row.get("kind", "")), label, golds)


def find_patterns(text: str) -> list[Span]:
    """Return the personal data found by pattern, with a policy's defaults."""
    return find_pii(text, ENTITIES, PII_THRESHOLD)


def score_injection(rows: Iterable[Row], source: Source = "user", find: Finder = find_patterns) -> dict[str, Any]:
    """Return recall and false positive rate of both thresholds, overall and by language, and shares by kind.

    `cpu_ms` is the guards' time a text on one thread, injection and `find` together, in milliseconds. A rate that has no
    rows to be taken from is None.
    """
    limits, judged, took = THRESHOLDS[source], list[_Judged](), list[float]()
    for row in _warmed(rows, find):
        began = time.thread_time()
        score = assess(row.text, source=source).score
        find(row.text)
        took.append(1000 * (time.thread_time() - began))
        judged.append(_Judged(row, score >= limits.block, score >= limits.flag))
    by_lang, by_kind = defaultdict[str, list[_Judged]](list), defaultdict[str, list[_Judged]](list)
    for one in judged:
        by_lang[one.row.lang].append(one)
        by_kind[one.row.kind].append(one)
    p50, p95 = np.percentile(took, [50, 95]) if took else (0.0, 0.0)
    return {
        **_rates(judged),
        "by_lang": {lang: _rates(some) for lang, some in sorted(by_lang.items())},
        "by_kind": {
            kind: {"n": len(some), "block": _share(j.block for j in some), "flag": _share(j.flag for j in some)}
            for kind, some in sorted(by_kind.items())
        },
        "cpu_ms": {"p50": round(float(p50), 3), "p95": round(float(p95), 3)},
    }


@dataclass(frozen=True)
class _Judged:
    row: Row
    block: bool
    flag: bool


def _warmed(rows: Iterable[Row], find: Finder) -> Iterator[Row]:
    """Let the first text load what is loaded once, outside of the measured time."""
    for count, row in enumerate(rows):
        if count == 0:
            assess(row.text)
            find("1 " + row.text)
        yield row


def _rates(judged: Sequence[_Judged]) -> dict[str, Any]:
    attacks, harmless = ([j for j in judged if j.row.label == label] for label in (1, 0))
    return {
        "n": len(judged),
        "block": {"recall": _share(j.block for j in attacks), "fpr": _share(j.block for j in harmless)},
        "flag": {"recall": _share(j.flag for j in attacks), "fpr": _share(j.flag for j in harmless)},
    }


def _share(hits: Iterable[bool]) -> float | None:
    every = list(hits)
    return round(sum(every) / len(every), 4) if every else None


@dataclass
class _Tally:
    """Counts by type: marked spans and those found, predictions and those that are right."""

    marked: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    touching: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    touching_values: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, golds: Sequence[Gold], spans: Sequence[Span]) -> None:
        for gold in golds:
            self.marked[gold.type] += 1
            self.found[gold.type] += any(_touch(gold, span) and same_type(gold.type, span.entity) for span in spans)
        for span in spans:
            near = [gold for gold in golds if _touch(gold, span)]
            self.predicted[span.entity] += 1
            self.touching[span.entity] += bool(near)
            self.right[span.entity] += any(same_type(gold.type, span.entity) for gold in near)
        for entity, mentions in _values(text, spans):
            self.values[entity] += 1
            self.touching_values[entity] += any(_touch(gold, span) for gold in golds for span in mentions)

    def by_type(self) -> dict[str, Any]:
        """Judge each type of the data: precision is over the predictions of that type or of one that means the same."""
        result: dict[str, Any] = {}
        for kind in sorted(self.marked):
            meant = [entity for entity in self.predicted if same_type(kind, entity)]
            predicted, right = (sum(counter[e] for e in meant) for counter in (self.predicted, self.right))
            result[kind] = {
                "n": self.marked[kind],
                "recall": _part(self.found[kind], self.marked[kind]),
                "precision": _part(right, predicted),
            }
        return result

    def by_entity(self) -> dict[str, Any]:
        """Judge each entity of the detectors: `false_share` touches nothing that is marked at all.

        `values` counts what a text says several times once, a short form with its full name.
        """
        return {
            entity: {
                "n": count,
                "precision": _part(self.right[entity], count),
                "false_share": _part(count - self.touching[entity], count),
                "values": {
                    "n": self.values[entity],
                    "false_share": _part(self.values[entity] - self.touching_values[entity], self.values[entity]),
                },
            }
            for entity, count in sorted(self.predicted.items())
        }


def score_pii(rows: Iterable[Row], find: Finder = find_patterns) -> dict[str, Any]:
    """Return recall and precision by type of the data, and what the detectors' entities hit, overall and by language."""
    overall, by_lang, count = _Tally(), defaultdict[str, _Tally](_Tally), Counter[str]()
    for row in rows:
        spans = find(row.text)
        for tally in (overall, by_lang[row.lang]):
            tally.add(row.text, row.spans or (), spans)
        count[row.lang] += 1
    return {
        "n": count.total(),
        "by_type": overall.by_type(),
        "by_entity": overall.by_entity(),
        "by_lang": {
            lang: {"n": count[lang], "by_type": tally.by_type(), "by_entity": tally.by_entity()}
            for lang, tally in sorted(by_lang.items())
        },
    }


def same_type(kind: str, entity: str) -> bool:
    """Whether a detector's entity is what the data calls `kind`."""
    return entity == kind or entity in SAME_TYPE.get(kind, ())


def _values(text: str, spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    """Return the spans of a text by what they say: together are those of an entity whose words are all in the longest."""
    found: list[tuple[str, frozenset[str], list[Span]]] = []
    for span in sorted(spans, key=lambda span: span.start - span.end):
        words = frozenset(text[span.start : span.end].casefold().split())
        for entity, others, mentions in found:
            if entity == span.entity and words <= others:
                mentions.append(span)
                break
        else:
            found.append((span.entity, words, [span]))
    return [(entity, mentions) for entity, _words, mentions in found]


def _touch(gold: Gold, span: Span) -> bool:
    return gold.start < span.end and span.start < gold.end


def _part(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
