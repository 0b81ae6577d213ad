"""Where in a text its words stand: how sentences begin and end, and what the first and the last sentence say.

An order gives itself away by its place: attacks open with one, or put one behind harmless text, in words that harmless texts
use elsewhere.
"""

from __future__ import annotations

import re
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

BITS = 18
_END = re.compile(r"[.!?;:\n\u3002]+")
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff](?:[^\W\u3400-\u9fff]|['\u2019])*")
_OPENING = 3  # words


def places(text: str) -> NDArray[np.int64]:
    """Return the bucket, below 2^18, of each beginning and end of a sentence, and of the words of the outer two.

    `text` is folded (see `guards.views`); a Han character counts as a word.
    """
    sentences = [words for part in _END.split(text) if (words := _TOKEN.findall(part))]
    if not sentences:
        return np.zeros(0, dtype=np.int64)
    said: list[str] = []
    for words in sentences:
        said += [f"begins {' '.join(words[:count])}" for count in range(1, min(_OPENING, len(words)) + 1)]
        said += [f"ends {words[-1]}", f"ends {' '.join(words[-2:])}"]
    for place, words in (("first", sentences[0]), ("last", sentences[-1])):
        said += [f"{place} {word}" for word in words]
        said += [f"{place} {word} {after}" for word, after in pairwise(words)]
    return np.array([crc32(one.encode("utf-8", "surrogatepass")) >> (32 - BITS) for one in said], dtype=np.int64)
