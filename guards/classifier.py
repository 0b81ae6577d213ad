"""The shipped classifier: n-grams, concepts, and words by their place; one linear head each for Chinese and for other text.

Each feature falls into one of 2^18 buckets; a bucket's `gain` says how telling it is (a naive Bayes log-ratio, after Wang
and Manning 2012), and its `weight` how it speaks for an attack. Values are log counts times gain, scaled to unit length for
each kind apart, so that a thousand n-grams do not drown ten concepts. numpy only: no Python loop runs over n-grams.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guards.concepts import load_lexicon
from guards.places import places

BITS = 18
MAX_CHARS = 8000  # what is longer is to be read in windows
_LONGEST_GRAM = 5
_LONGEST_WORD = 64
_SHIPPED = Path(__file__).parent / "classifier" / "weights.npz"
_SPACE = re.compile(r"\s+")
_HAN = re.compile(r"[\u3400-\u9fff]")
_HAN_SHARE = 0.1
_ADDRESS = re.compile(r"(?:https?://|www\.)[^\s\u3000-\u9fff]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\+?\d[\d\s().-]{5,}\d", re.ASCII)
_LETTER = re.compile(r"[^\W\d_\u3400-\u9fff]")
_HAN_LETTERS = 3  # of a Latin word are worth one Han character
_ENOUGH_LETTERS = 20  # with fewer nothing much is said, and a score is worth less

_MULTIPLIERS = np.random.default_rng(7).integers(1, 2**63, size=_LONGEST_WORD, dtype=np.uint64) | np.uint64(1)


class ClassifierError(ValueError):
    """A file of weights that cannot be used; the message names it."""


@dataclass(frozen=True)
class Block:
    """One kind of feature: `gain` and `weight` by bucket, float16[2^18]."""

    gain: NDArray[np.float16]
    weight: NDArray[np.float16]

    def value(self, buckets: NDArray[np.int64]) -> float:
        """Return what the features of a text, one bucket each, say together: more than 0 speaks for an attack."""
        buckets, counts = np.unique(buckets, return_counts=True)
        features = (1 + np.log(counts)) * self.gain[buckets].astype(np.float64)
        length = float(np.sqrt(features @ features))
        return float(features @ self.weight[buckets].astype(np.float64)) / length if length else 0.0


@dataclass(frozen=True)
class Head:
    """A block for each of FEATURES and a bias; `slope` and `shift` bring a raw value to the scale of the rules."""

    blocks: tuple[Block, ...]
    bias: float
    slope: float
    shift: float

    def raw(self, text: str) -> float:
        """Return the uncalibrated value of a bare text; above 0 is more like an attack."""
        features = (find(text) for find in FEATURES.values())
        return sum((block.value(found) for block, found in zip(self.blocks, features, strict=True)), self.bias)

    def score(self, text: str) -> float:
        """Return the calibrated score of a bare text, 0 to 1."""
        return float(1 / (1 + np.exp(-(self.slope * self.raw(text) + self.shift))))


@dataclass(frozen=True)
class Classifier:
    """The two heads; immutable, safe for threads."""

    chinese: Head
    other: Head

    def score(self, text: str) -> float:
        """Return how much a folded text (see `guards.views`) looks like an attack, 0 to 1; reads its first 8,000 characters."""
        text = bare(text[:MAX_CHARS])
        said = len(_LETTER.findall(text)) + _HAN_LETTERS * len(_HAN.findall(text))
        return min(1.0, said / _ENOUGH_LETTERS) * (self.chinese if is_chinese(text) else self.other).score(text)


def bare(text: str) -> str:
    """Return a text without addresses of the net and long numbers: they are no words, and corpora differ in them."""
    return _ADDRESS.sub(" ", text)


def is_chinese(text: str) -> bool:
    """Whether at least a tenth of a text's characters are Han characters."""
    return len(_HAN.findall(text)) >= _HAN_SHARE * max(1, len(text))


@functools.cache
def load_classifier(path: Path = _SHIPPED) -> Classifier:
    """Read a file of weights, once; raises ClassifierError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Classifier(_head(arrays, "zh"), _head(arrays, "en"))
    except (OSError, KeyError, ValueError) as error:
        msg = f"{path} holds no usable weights: {error}; train them with `python -m guards.train_classifier`"
        raise ClassifierError(msg) from error


def _head(arrays: Mapping[str, NDArray[Any]], name: str) -> Head:
    blocks = tuple(_block(arrays[f"{name}_{kind}_gain"], arrays[f"{name}_{kind}_weight"]) for kind in FEATURES)
    bias, slope, shift = (float(value) for value in arrays[f"{name}_scale"])
    return Head(blocks, bias, slope, shift)


def _block(gain: NDArray[np.float16], weight: NDArray[np.float16]) -> Block:
    if gain.shape != (2**BITS,) or weight.shape != (2**BITS,):
        msg = f"arrays of shape {gain.shape} and {weight.shape}, expected ({2**BITS},)"
        raise ValueError(msg)
    return Block(gain, weight)


def ngrams(text: str) -> NDArray[np.int64]:
    """Return the bucket of every n-gram of a text: 1-5 characters, and 1-3 words of scripts that write words apart."""
    text = f" {_SPACE.sub(' ', text).strip()} "
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):  # hashing is arithmetic modulo 2^64
        letters = _mix(codes * np.uint64(0xD6E8FEB86659FD93))
        grams = letters
        found = [grams]
        for length in range(2, min(_LONGEST_GRAM, len(codes)) + 1):
            grams = _mix(grams[:-1] * np.uint64(0x100000001B3) + letters[length - 1 :])
            found.append(grams ^ np.uint64(length))
        found += _word_grams(codes, letters)
    return (np.concatenate(found) >> np.uint64(64 - BITS)).astype(np.int64)


def _word_grams(codes: NDArray[np.uint64], letters: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    inside = ((codes >= ord("a")) & (codes <= ord("z"))) | ((codes >= ord("0")) & (codes <= ord("9"))) | (codes == ord("'"))
    inside |= (codes >= 0xC0) & (codes < 0x2000)  # noqa: PLR2004  letters of other alphabets; general punctuation begins after
    starts = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    if not len(starts):
        return []
    index = np.arange(len(codes))
    began = np.zeros(len(codes), dtype=np.int64)
    began[starts] = starts
    position = np.minimum(index - np.maximum.accumulate(began), _LONGEST_WORD - 1)
    words = _mix(np.add.reduceat(np.where(inside, letters * _MULTIPLIERS[position], np.uint64(0)), starts))
    pairs = _mix(words[:-1] * np.uint64(31) + words[1:])
    triples = _mix(pairs[:-1] * np.uint64(37) + words[2:])
    return [words ^ np.uint64(101), pairs ^ np.uint64(103), triples ^ np.uint64(107)]


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return value ^ (value >> np.uint64(29))


def _concepts(text: str) -> NDArray[np.int64]:
    return load_lexicon().grams(text)


# Kinds of features: each gives the buckets, below 2^18, of a bare text.
FEATURES: Mapping[str, Callable[[str], NDArray[np.int64]]] = {"ngrams": ngrams, "concepts": _concepts, "places": places}
