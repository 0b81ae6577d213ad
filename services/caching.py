"""The answer cache as a box has it: what `cache` asks of questions' numbers and negations, answered by `guards`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache.agreement import Facts
from guards.normalize import normalize
from guards.polarity import contradicts
from guards.quantities import Quantity, find_quantities, occurs

if TYPE_CHECKING:
    from cache.evaluate import Measured
    from cache.judged import Pair


def _quantities(text: str) -> list[Quantity]:
    # "one" and 一 are articles more often than numbers.
    return [q for q in find_quantities(normalize(text).text) if not (q.dimension == "number" and q.value == 1)]


def differ_in_numbers(one: str, other: str) -> bool:
    """Whether a quantity of either question is not in the other, in any spelling."""
    left, right = _quantities(one), _quantities(other)
    return not (all(occurs(q, right) for q in left) and all(occurs(q, left) for q in right))


def oppose(one: str, other: str) -> bool:
    """Whether a question denies what the other says, or says the opposite of it."""
    return contradicts(one, other) or contradicts(other, one)


FACTS = Facts(differ_in_numbers, oppose)


def measure_pairs(pairs: Sequence[Pair], folder: Path, workers: int, tell: Callable[[str, int, int], None]) -> Measured:
    """Embed and measure pairs for `cache.evaluate` and `cache.train`; vectors are kept in the folder."""
    import numpy as np

    from cache.evaluate import measured
    from rag.evaluate import PooledEmbeddings
    from rag.scratch import Scratch, embed_missing, key_of

    texts = {key_of(text): text for pair in pairs for text in (pair.one, pair.other)}
    with PooledEmbeddings(workers) as embeddings:
        scratch = Scratch(folder / embeddings.name / "query")
        known = scratch.vectors()
        embed_missing(texts, known, scratch, embeddings.embed_queries, partial(tell, "embedding"))
    vectors = np.array([[known[key_of(pair.one)], known[key_of(pair.other)]] for pair in pairs], dtype=np.float32)
    return measured(pairs, vectors, FACTS)
