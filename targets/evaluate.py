"""How well an estimator of complexity divides questions between a weak and a strong model.

RouteLLM's figures (Ong et al. 2024). When a share of the questions, the most complex, goes to the strong model, a part of the gap
in correct answers between the two models is recovered. APGR is the mean of that part over all shares from 0 to 1: 0.5 at random.
CPT(x) is the smallest share at which x of the gap is recovered.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class EvaluationError(ValueError):
    """Rows that cannot be judged; the message names file and line."""


@dataclass(frozen=True)
class Question:
    """A question, and whether the weak and the strong model answered it correctly."""

    prompt: str
    weak: bool
    strong: bool
    source: str = ""
    subject: str = ""


def read_questions(path: Path) -> list[Question]:
    """Read JSON lines, also gzipped: "prompt", "weak_ok", "strong_ok", "dataset" and "subject" if any. Raises EvaluationError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise EvaluationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise EvaluationError(f"{path} has no rows")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
        prompt, weak, strong = row["prompt"], row["weak_ok"], row["strong_ok"]
        source, subject = (str(row.get(name) or "") for name in ("dataset", "subject"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f'{where} is no row with "prompt", "weak_ok" and "strong_ok": {error}') from error
    if not (isinstance(prompt, str) and isinstance(weak, bool) and isinstance(strong, bool)):
        raise EvaluationError(f'{where}: "prompt" must be a text, "weak_ok" and "strong_ok" true or false')
    return Question(prompt, weak, strong, source, subject)


def recovered(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (shares of strong calls, parts of the gap recovered), from (0, 0) to (1, 1); equal scores go together, in a line.

    Arrays [n]; `weak` and `strong` are correctness, 0 to 1. Raises EvaluationError when there is no gap.
    """
    scores, gain = np.asarray(scores, dtype=np.float64), np.asarray(strong, dtype=np.float64) - np.asarray(weak, dtype=np.float64)
    if not len(scores) or gain.sum() <= 0:
        raise EvaluationError("the strong model is right no more often than the weak one: there is no gap to recover")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])) + 1, len(scores))
    parts = np.cumsum(gain[order])[ends - 1] / gain.sum()
    return np.append(0.0, ends / len(scores)), np.append(0.0, parts)


def apgr(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> float:
    """Return the average part of the gap that is recovered; raises EvaluationError when there is no gap."""
    shares, parts = recovered(scores, weak, strong)
    return float((np.diff(shares) * (parts[1:] + parts[:-1])).sum() / 2)


def cpt(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike, part: float) -> float:
    """Return the smallest share of strong calls that recovers a part of the gap; raises EvaluationError when there is no gap."""
    shares, parts = recovered(scores, weak, strong)
    first = int(np.argmax(parts >= part))
    low, high = parts[first - 1], parts[first]
    return float(shares[first - 1] + (shares[first] - shares[first - 1]) * (part - low) / (high - low))


def evaluate(questions: Sequence[Question], score: Callable[[str], float], knows: Callable[[str], bool]) -> dict[str, Any]:
    """Return the figures of a scorer by source and over `all`; what it `knows`, having been trained on it, is left out.

    None where there is no gap between the models. Raises EvaluationError when nothing is left.
    """
    unseen = [question for question in questions if not knows(question.prompt)]
    if not unseen:
        raise EvaluationError(f"all {len(questions)} rows were trained on: they say nothing about questions that were not")
    begun = time.process_time()
    scores = np.array([score(question.prompt) for question in unseen])
    milliseconds = (time.process_time() - begun) * 1000 / len(unseen)
    sources = sorted({question.source for question in unseen})
    by_source = {
        source: figures([q for q in unseen if q.source == source], scores[[q.source == source for q in unseen]])
        for source in sources
    }
    return {
        "n": len(unseen),
        "left_out": len(questions) - len(unseen),
        "cpu_ms": round(milliseconds, 3),
        "all": figures(unseen, scores),
        "by_source": by_source,
    }


def figures(questions: Sequence[Question], scores: NDArray[np.float64]) -> dict[str, Any]:
    """Return n, how often each model is right, and, where there is a gap, the figures and the scores that lie at both CPTs."""
    weak, strong = (np.array([getattr(q, name) for q in questions], dtype=np.float64) for name in ("weak", "strong"))
    found: dict[str, Any] = {"n": len(questions), "weak": round(float(weak.mean()), 4), "strong": round(float(strong.mean()), 4)}
    names = ("apgr", "apgr_of_length", "cpt50", "cpt80", "threshold50", "threshold80")
    if strong.sum() <= weak.sum():
        return found | dict.fromkeys(names)
    lengths = [len(question.prompt) for question in questions]
    half, most = (cpt(scores, weak, strong, part) for part in (0.5, 0.8))
    values = (
        apgr(scores, weak, strong), apgr(lengths, weak, strong), half, most,
        *(float(np.quantile(scores, 1 - share)) for share in (half, most)),
    )  # fmt: skip
    return found | {name: round(value, 4) for name, value in zip(names, values, strict=True)}
