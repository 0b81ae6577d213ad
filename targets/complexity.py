"""How much a question stands to gain from a stronger model: numpy only, a millisecond, no other model is asked.

A ridge regression over three kinds of features of the text, each of about unit length: hashed n-grams of characters and of words
(log counts times inverse document frequency), and random Fourier features of a few counts (length, numbers, symbols, form). It
was trained on how often a strong model was right where a weak one was not, so it knows what those two models found hard, in
English. `train_complexity.py` makes the weights; docs/routing.md has its figures and limits.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

BITS = 17
MAX_CHARACTERS = 4000  # what comes later changes little, and a caller must not buy time with it
QUANTILES = 101
SHIPPED = Path(__file__).with_name("complexity.npz")
_LONGEST_GRAM = 4
LENGTH = 1.0  # how freely the length may count, beside the other kinds of features
FAR = 4.0  # standard deviations from what was trained on beyond which a count says no more
_LONG_WORD = 9
_WORD = re.compile(r"[^\W\d_]+")
_SPACE = re.compile(r"\s+")
_OPTION = re.compile(r"(?m)^[ \t]*\(?[A-Ha-h1-9][.):、]\s*\S.*$")
_END = re.compile(r"\s*(?:Answer|答案)\s*[:：]\s*\Z")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MATH = re.compile(r"[=+*/^<>≤≥√∑∫π×÷%°|\\{}\[\]]")
_SENTENCE = re.compile(r"[.!?](?:\s|$)|[。！？]")
_PERSON = frozenset({"he", "she", "his", "her", "man", "woman", "patient", "i"})
_CONDITION = frozenset({"if", "then", "suppose", "let", "assume", "given", "when"})
_FORMS = (
    re.compile(r"_{2,}"),
    re.compile(r"\b(?:not|except|least|without)\b|不|除", re.IGNORECASE),
    re.compile(r"which of the following|下列", re.IGNORECASE),
    re.compile(r"\bstatement|\bI{1,3}\.", re.IGNORECASE),
    re.compile(r'["“”「]'),
    re.compile(r"[?？]"),
    re.compile(r"```|\bdef |\breturn\b|[{};]\s*$", re.MULTILINE),
)


class ComplexityError(ValueError):
    """A file of weights that cannot be used; the message names it."""


@dataclass(frozen=True)
class Grams:
    """One kind of n-gram: `idf` and `weight` by bucket, float16[2^17]."""

    idf: NDArray[np.float16]
    weight: NDArray[np.float16]

    def value(self, buckets: NDArray[np.int64]) -> float:
        """Return what the n-grams of a text say together; those that training did not know say nothing."""
        buckets, counts = np.unique(buckets, return_counts=True)
        features = (1 + np.log(counts)) * self.idf[buckets].astype(np.float64)
        length = float(np.sqrt(features @ features))
        return float(features @ self.weight[buckets].astype(np.float64)) / length if length else 0.0


@dataclass(frozen=True)
class Complexity:
    """The estimator; immutable, safe for threads. Arrays: f counts, d random features, k questions that were trained on."""

    PLAIN: ClassVar = ("mean", "deviation", "projection", "phase", "weight", "quantiles", "trained_on")

    characters: Grams
    words: Grams
    mean: NDArray[np.float32]
    """float32[f], and so is `deviation`: they bring the counts to one scale."""
    deviation: NDArray[np.float32]
    projection: NDArray[np.float32]
    """float32[f, d]; its phases are float32[d], the weights float32[d + 1]."""
    phase: NDArray[np.float32]
    weight: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    """float32[101]: the raw values of questions that were not trained on, from the lowest to the highest."""
    trained_on: NDArray[np.uint64]
    """uint64[k]: fingerprints, so that an evaluation can tell what it must leave out."""

    def raw(self, text: str) -> float:
        """Return the expected gain in correct answers, about -1 to 1, by the models that it was trained on."""
        text = bare(text)
        said = float(dense(self.scaled(counts(text)), self.projection, self.phase) @ self.weight)
        return said + self.characters.value(character_grams(text)) + self.words.value(word_grams(text))

    def score(self, text: str) -> float:
        """Return how complex a text is, 0 to 1: the share of the questions it was trained on that gain less."""
        return float(np.interp(self.raw(text), self.quantiles, np.linspace(0, 1, QUANTILES)))

    def scaled(self, counted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring counts, float64[..., f], to the scale of training."""
        return np.clip((counted - self.mean) / self.deviation, -FAR, FAR)

    def knows(self, text: str) -> bool:
        """Whether it was trained on this very text."""
        return bool(np.isin(fingerprint(text), self.trained_on))


def bare(text: str) -> str:
    """Return what is read of a text: its beginning, without the call for an answer at its end."""
    return _END.sub("", text[:MAX_CHARACTERS])


def fingerprint(text: str) -> np.uint64:
    """Return the hash by which a question is known again."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()))


def dense(scaled: NDArray[Any], projection: NDArray[Any], phase: NDArray[Any]) -> NDArray[Any]:
    """Return the features of scaled counts, [..., f]: [..., d + 1].

    The first d are random Fourier features (Rahimi and Recht 2007). The last is the length once more: it carries over
    to questions that are unlike those trained on.
    """
    random = np.sqrt(2 / len(phase)) * np.cos(scaled @ projection + phase)
    return np.concatenate([random, LENGTH * scaled[..., :1]], axis=-1)


def counts(text: str) -> NDArray[np.float64]:
    """Return float64[28]: lengths, numbers, symbols, sentences, vocabulary, and the form of a question."""
    length, words = max(len(text), 1), [word.lower() for word in _WORD.findall(text)]
    count = max(len(words), 1)
    options = _OPTION.findall(text)
    sizes = np.array([len(option) for option in options] or [0])
    numbers, symbols = _NUMBER.findall(text), sum(not (c.isalnum() or c.isspace()) for c in text)
    digits, math = sum(map(len, numbers)), len(_MATH.findall(text))
    sentences = max(len(_SENTENCE.findall(text)), 1)
    lengths = np.array([len(word) for word in words] or [0])
    return np.array([
        np.log1p(len(text)), np.log1p(len(words)), np.log1p(len(text) - sizes.sum()),
        np.log1p(sizes.mean()), np.log1p(sizes.std()), bool(options),
        sum(bool(_NUMBER.search(option[2:])) for option in options) / max(len(options), 1),
        np.log1p(digits), digits / length, np.log1p(len(numbers)), symbols / length, np.log1p(math), math / length,
        np.log1p(sentences), np.log1p(len(words) / sentences),
        lengths.mean(), (lengths >= _LONG_WORD).mean(), (lengths == 1).mean(), len(set(words)) / count,
        sum(word in _PERSON for word in words) / count, sum(word in _CONDITION for word in words) / count,
        *(form.search(text) is not None for form in _FORMS),
    ], dtype=np.float64)  # fmt: skip


def character_grams(text: str) -> NDArray[np.int64]:
    """Return the bucket of every n-gram of 2 to 4 characters."""
    text = f" {_SPACE.sub(' ', text).strip().lower()} "
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):  # hashing is arithmetic modulo 2^64
        grams, found = codes, [np.zeros(0, dtype=np.uint64)]
        for size in range(2, min(_LONGEST_GRAM, len(codes)) + 1):
            grams = grams[:-1] * np.uint64(0x100000001B3) + codes[size - 1 :]
            found.append((grams ^ np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15))
    return (np.concatenate(found) >> np.uint64(64 - BITS)).astype(np.int64)


def word_grams(text: str) -> NDArray[np.int64]:
    """Return the bucket of every word, and of every two that follow each other."""
    words = [word.encode("utf-8", "surrogatepass") for word in re.findall(r"\w\w+", text.lower())]
    pairs = [one + b" " + other for one, other in pairwise(words)]
    return np.array([zlib.crc32(gram) >> (32 - BITS) for gram in words + pairs], dtype=np.int64)


@functools.cache
def load_complexity(path: Path = SHIPPED) -> Complexity:
    """Read a file of weights, once; raises ComplexityError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            made = Complexity(
                Grams(arrays["characters_idf"], arrays["characters_weight"]),
                Grams(arrays["words_idf"], arrays["words_weight"]),
                **{name: arrays[name] for name in Complexity.PLAIN},
            )
        _check(made)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ComplexityError(f"{path} holds no usable weights: {error}; `python -m targets.train_complexity`") from error
    return made


def _check(made: Complexity) -> None:
    size, features = len(made.mean), len(made.phase)
    wanted = {
        (2**BITS,): (made.characters.idf, made.characters.weight, made.words.idf, made.words.weight),
        (size,): (made.mean, made.deviation, counts("")),
        (size, features): (made.projection,),
        (features,): (made.phase,),
        (features + 1,): (made.weight,),
        (QUANTILES,): (made.quantiles,),
    }
    for shape, arrays in wanted.items():
        if wrong := [array.shape for array in arrays if array.shape != shape]:
            raise ValueError(f"an array of shape {wrong[0]}, expected {shape}")
