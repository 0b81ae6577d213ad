"""Make `complexity.npz`, the weights of the estimator of complexity.

    python -m targets.train_complexity QUESTIONS.jsonl.gz [--write]

Needs scipy (dependency group `train`). Rows are those of `ekiben route eval`. What is learnt is the gain: strong right minus weak
right. One question's gain is mostly chance, so where rows have a subject its questions are taught their subject's mean gain;
subjects are seen in training only, never asked for. Prints figures of questions that were not trained on: five folds, repeated,
and each source by the others. Deterministic.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.complexity import (
    BITS,
    FAR,
    QUANTILES,
    SHIPPED,
    Complexity,
    Grams,
    bare,
    character_grams,
    counts,
    dense,
    fingerprint,
    word_grams,
)
from targets.evaluate import Question, apgr, cpt, read_questions

FOLDS, REPEATS = 5, 5
FEATURES = 512  # random ones
RIDGE, RIDGE_ALONE = 6.0, 40.0  # of questions with and without a subject: how little is believed of one
LEAST = 2  # questions that an n-gram must be in
SHRINK = 20.0  # questions that a subject must have for its mean to count half
Buckets = Callable[[str], NDArray[np.int64]]


@dataclass(frozen=True)
class Space:
    """The features of some questions, and how they are made."""

    characters: Any
    """sparse[n, 2^17], rows of unit length; so are `words`."""
    words: Any
    idf: tuple[NDArray[np.float16], NDArray[np.float16]]
    dense: NDArray[np.float64]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    projection: NDArray[np.float32]
    phase: NDArray[np.float32]

    @property
    def kernel(self) -> NDArray[np.float64]:
        """Products of all pairs, [n, n]."""
        grams: Any = self.characters @ self.characters.T + self.words @ self.words.T
        return np.asarray(grams.todense()) + self.dense @ self.dense.T


def space(texts: Sequence[str]) -> Space:
    """Make the features: what is known of each n-gram, and the scale of the counts, come from these texts."""
    characters, characters_idf = _grams(texts, character_grams)
    words, words_idf = _grams(texts, word_grams)
    counted = np.array([counts(text) for text in texts])
    mean = counted.mean(axis=0).astype(np.float32)
    deviation = np.maximum(counted.std(axis=0), 1e-3).astype(np.float32)
    scaled = np.clip((counted - mean) / deviation, -FAR, FAR)
    some = scaled[:: max(1, len(scaled) // 500)]
    distances = ((some[:, None] - some[None]) ** 2).sum(axis=2)
    chance = np.random.default_rng(7)
    # A Gaussian kernel whose width is the median distance.
    scale = np.sqrt(2 / np.median(distances[distances > 0]))
    projection = (chance.standard_normal((counted.shape[1], FEATURES)) * scale).astype(np.float32)
    phase = chance.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)
    features = dense(scaled, projection, phase)
    return Space(characters, words, (characters_idf, words_idf), features, mean, deviation, projection, phase)


def _grams(texts: Sequence[str], buckets: Buckets) -> tuple[Any, NDArray[np.float16]]:
    from scipy import sparse

    found = [np.unique(buckets(text), return_counts=True) for text in texts]
    columns = np.concatenate([places for places, _ in found])
    rows = np.repeat(np.arange(len(found)), [len(places) for places, _ in found])
    documents = np.bincount(columns, minlength=2**BITS)
    idf = np.where(documents >= LEAST, np.log((1 + len(texts)) / (1 + documents)) + 1, 0).astype(np.float16)
    values = (1 + np.log(np.concatenate([times for _, times in found]))) * idf[columns].astype(np.float64)
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(found)))
    values /= np.maximum(lengths, 1e-9)[rows]
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), 2**BITS)), idf


def lessons(questions: Sequence[Question]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (what each question is taught, how little is believed of it): its subject's mean gain, or its own."""
    gains = np.array([question.strong - question.weak for question in questions], dtype=np.float64)
    total = float(gains.mean())
    subjects: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for question, gain in zip(questions, gains, strict=True):
        subjects[question.source, question.subject].append(float(gain))
    means = {key: (sum(found) + SHRINK * total) / (len(found) + SHRINK) for key, found in subjects.items()}
    taught = [
        means[question.source, question.subject] if question.subject else gain
        for question, gain in zip(questions, gains, strict=True)
    ]
    return np.array(taught) - total, np.array([RIDGE if question.subject else RIDGE_ALONE for question in questions])


def solve(kernel: NDArray[np.float64], questions: Sequence[Question]) -> NDArray[np.float64]:
    """Return the dual weights of the questions, [n]."""
    from scipy.linalg import solve as linear

    taught, belief = lessons(questions)
    return linear(kernel + np.diag(belief), taught, assume_a="pos")


def unseen(questions: Sequence[Question], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the value of each question by an estimator made of those in other folds alone, [n]."""
    values = np.zeros(len(questions))
    for fold in np.unique(folds):
        train = [question for question, place in zip(questions, folds, strict=True) if place != fold]
        made = space([bare(question.prompt) for question in train])
        estimator = compose(made, solve(made.kernel, train), np.linspace(-1, 1, QUANTILES), [])
        for place in np.flatnonzero(folds == fold):
            values[place] = estimator.raw(questions[place].prompt)
    return values


def compose(made: Space, dual: NDArray[np.float64], quantiles: NDArray[Any], prompts: Sequence[str]) -> Complexity:
    """Return the estimator that these dual weights are."""
    characters, words = ((grams.T @ dual).astype(np.float16) for grams in (made.characters, made.words))
    return Complexity(
        Grams(made.idf[0], characters),
        Grams(made.idf[1], words),
        made.mean,
        made.deviation,
        made.projection,
        made.phase,
        (made.dense.T @ dual).astype(np.float32),
        quantiles.astype(np.float32),
        np.sort(np.array([fingerprint(prompt) for prompt in prompts], dtype=np.uint64)),
    )


def save(made: Complexity, path: Path) -> None:
    """Write the file of weights."""
    plain = {name: getattr(made, name) for name in Complexity.PLAIN}
    grams = {"characters": made.characters, "words": made.words}
    arrays = {f"{name}_{part}": getattr(kind, part) for name, kind in grams.items() for part in ("idf", "weight")}
    np.savez_compressed(path, **plain, **arrays)


def report(questions: Sequence[Question]) -> NDArray[np.float64]:
    """Print figures of questions that were not trained on; return their values, [n], the mean over repeated folds."""
    chance = np.random.default_rng(7)
    repeats = [unseen(questions, chance.permutation(len(questions)) % FOLDS) for _ in range(REPEATS)]
    sources = np.array([question.source for question in questions])
    names, places = np.unique(sources, return_inverse=True)
    others = unseen(questions, places) if len(names) > 1 else None
    weak, strong = (np.array([getattr(q, name) for q in questions], dtype=np.float64) for name in ("weak", "strong"))
    lengths = np.array([len(question.prompt) for question in questions])
    for name in names:
        here = sources == name
        w, s = weak[here], strong[here]
        folds = [apgr(values[here], w, s) for values in repeats]
        shares = [np.mean([cpt(values[here], w, s, part) for values in repeats]) for part in (0.5, 0.8)]
        sys.stdout.write(
            f"{name or '-':10} n {here.sum()}, length APGR {apgr(lengths[here], w, s):.4f}; five folds APGR {np.mean(folds):.4f} "
            f"({min(folds):.4f}-{max(folds):.4f}), error {_error(repeats[0][here], w, s):.4f}, CPT50 {shares[0]:.3f}, "
            f"CPT80 {shares[1]:.3f}"
            + (f"; by the other sources APGR {apgr(others[here], w, s):.4f}\n" if others is not None else "\n")
        )
    return np.mean(repeats, axis=0)


def _error(values: NDArray[np.float64], weak: NDArray[np.float64], strong: NDArray[np.float64]) -> float:
    """Return the standard error of APGR by the bootstrap."""
    chance = np.random.default_rng(7)
    draws = (chance.integers(0, len(values), len(values)) for _ in range(300))
    return float(np.std([apgr(values[draw], weak[draw], strong[draw]) for draw in draws if (strong - weak)[draw].sum() > 0]))


def main() -> None:
    """Train, print, and write where that is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {SHIPPED.name}")
    options = parser.parse_args()
    questions = list({question.prompt: question for question in read_questions(options.questions)}.values())
    values = report(questions)
    if options.write:
        made = space([bare(question.prompt) for question in questions])
        quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES))
        save(compose(made, solve(made.kernel, questions), quantiles, [question.prompt for question in questions]), SHIPPED)
        sys.stdout.write(f"wrote {SHIPPED.name}, {SHIPPED.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
