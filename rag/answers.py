"""Figures of answers: each held against its references, and many of them together, with intervals.

Exact match and token F1 are SQuAD's: lower case, without punctuation and (in English) articles; the best reference counts.
Chinese, Japanese and Korean are compared by characters. https://rajpurkar.github.io/SQuAD-explorer/
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rag.metrics import compare, interval

FIGURES = (
    "exact", "f1", "contains", "groundedness", "citation_precision", "citation_recall", "source_recall", "abstention",
    "false_abstention",
)  # fmt: skip
WORSE_WHEN_HIGHER = frozenset({"false_abstention"})
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+"
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Row:
    """The figures of one answer, no text of it. A figure that does not apply is not in `figures`."""

    id: str
    language: str
    """`en`, `zh` or `other`: the question's."""
    figures: dict[str, float]
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    refused: bool = False
    """A guard refused the question or took the answer away."""
    whole_passages: bool = True
    """Whether it was held against whole passages; otherwise against the excerpts in its sources."""
    versions: dict[str, str] = field(default_factory=dict)


def answer_tokens(text: str, language: str) -> list[str]:
    """Return what of an answer is compared: words, and single characters of Chinese, Japanese and Korean."""
    folded = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(char for char in folded if unicodedata.category(char)[0] not in "PS")
    return _TOKEN.findall(plain if language == "zh" else _ARTICLES.sub(" ", plain))


def against(answer: str, references: Sequence[str], language: str) -> dict[str, float]:
    """Return `exact`, `f1` and `contains` (the tokens of a reference stand in the answer, side by side), each 0 to 1.

    References are right one by one: the best counts for each figure. There is at least one.
    """
    said, known = answer_tokens(answer, language), [answer_tokens(one, language) for one in references]
    return {
        "exact": max(float(said == one) for one in known),
        "f1": max(_f1(said, one) for one in known),
        "contains": max(float(holds(said, one)) for one in known),
    }


def _f1(said: list[str], reference: list[str]) -> float:
    if not said or not reference:
        return float(said == reference)
    common = sum((Counter(said) & Counter(reference)).values())
    return 2 * common / (len(said) + len(reference))


def holds(said: list[str], reference: list[str]) -> bool:
    """Whether the tokens of a reference stand in what was said, side by side; nothing is held by nothing alone."""
    if not reference:
        return said == reference
    return any(said[at : at + len(reference)] == reference for at in range(len(said) - len(reference) + 1))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of all answers and by language: of each its n, mean and 95% bootstrap interval."""
    languages = sorted({row.language for row in rows})
    return {
        **_means(rows),
        "by_language": {language: _means([row for row in rows if row.language == language]) for language in languages},
        "tokens": {
            name: {"total": sum(counts), "mean": sum(counts) / len(counts)} if counts else {"total": 0, "mean": 0.0}
            for name, counts in (
                ("prompt", [row.prompt_tokens for row in rows]),
                ("completion", [row.completion_tokens for row in rows]),
            )
        },
        "latency_ms": _percentiles([row.latency_ms for row in rows]),
        "refused": sum(row.refused for row in rows),
        "excerpts_only": sum(not row.whole_passages for row in rows),
        "versions": _versions(rows),
    }


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    told: dict[str, Any] = {"questions": len(rows)}
    for name in FIGURES:
        if values := [row.figures[name] for row in rows if name in row.figures]:
            low, high = interval(values)
            told[name] = {"n": len(values), "mean": sum(values) / len(values), "low": low, "high": high}
    return told


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    import numpy as np

    if not times:
        return {}
    p50, p95 = np.percentile(times, (50, 95))
    return {"p50": round(float(p50), 1), "p95": round(float(p95), 1), "max": round(max(times), 1)}


def _versions(rows: Iterable[Row]) -> dict[str, list[str]]:
    seen: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row.versions.items():
            seen.setdefault(name, set()).add(version)
    return {name: sorted(found) for name, found in sorted(seen.items())}


def differences(rows: Iterable[Row], others: Iterable[Row]) -> dict[str, Any]:
    """Return for each figure how much the first run is ahead of the other, over the questions that both have it for."""
    before = {row.id: row.figures for row in others}
    shared = [(row.figures, before[row.id]) for row in rows if row.id in before]
    told: dict[str, Any] = {}
    for name in FIGURES:
        if pairs := [(now[name], then[name]) for now, then in shared if name in now and name in then]:
            told[name] = {"n": len(pairs), **asdict(compare(*zip(*pairs, strict=True)))}
    return told


@dataclass(frozen=True)
class Bound:
    """A figure, of one language or of all, and the mean that it must reach (or, where `most`, may not exceed)."""

    figure: str
    value: float
    language: str | None = None
    most: bool = False

    @classmethod
    def parse(cls, text: str, *, most: bool) -> Bound:
        """Read `exact=0.5` or `zh.exact=0.4`; raises ValueError with what is wrong."""
        name, equals, number = text.strip().partition("=")
        language, dot, figure = name.rpartition(".")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not equals or figure not in FIGURES or not 0 <= value <= 1 or (dot and language not in {"en", "zh", "other"}):
            raise ValueError(
                f"{text!r} is not FIGURE=NUMBER or LANGUAGE.FIGURE=NUMBER with 0 to 1 and one of {', '.join(FIGURES)}"
            )
        return cls(figure, value, language or None, most)

    def missed(self, told: Mapping[str, Any]) -> str | None:
        """Say how a summary misses it, None where it does not; a figure that was not measured is missed."""
        of = told["by_language"].get(self.language, {}) if self.language else told
        name = f"{self.language}.{self.figure}" if self.language else self.figure
        if self.figure not in of:
            return f"{name} was not measured: no question or answer that it applies to"
        mean = of[self.figure]["mean"]
        if mean > self.value if self.most else mean < self.value:
            return f"{name} {mean:.3f} is {'over' if self.most else 'under'} {self.value:g}"
        return None
