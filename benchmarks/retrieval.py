"""Measure the way of a question through a large collection on one thread: its vector, both searches, the ranking.

    OMP_NUM_THREADS=1 python -m benchmarks.retrieval --chunks 100000

The collection is made up: unit vectors around some thousand centres, and texts of words that are as common as in a language
(Zipf), half of them Chinese. Prints p50 and p95 of each stage in ms.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document

from rag.embedded import EmbeddedStore
from rag.embedding import DIMENSIONS, MultilingualE5
from rag.ranking import Ranking
from rag.retriever import HybridRetriever

SEED = 7
CENTRES = 2000
WORDS = 50_000
HAN = 3500  # characters in common use
LENGTH = 120  # words of a chunk; twice as many characters of Chinese
BATCH = 10_000


def made_texts(random: np.random.Generator, count: int) -> Iterator[str]:
    """Yield texts, every other one Chinese."""
    ranks = np.arange(1, WORDS + 1)
    words = 1 / ranks / (1 / ranks).sum()
    han = 1 / ranks[:HAN] / (1 / ranks[:HAN]).sum()
    for number in range(count):
        if number % 2:
            yield "".join(chr(0x4E00 + int(place)) for place in random.choice(HAN, LENGTH * 2, p=han)) + "。"
        else:
            yield " ".join(f"w{place:x}" for place in random.choice(WORDS, LENGTH, p=words)) + "."


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    centres = random.normal(size=(CENTRES, DIMENSIONS))
    with tempfile.TemporaryDirectory() as folder:
        embeddings = MultilingualE5()
        store = EmbeddedStore(Path(folder), embeddings)
        texts = list(made_texts(random, options.chunks))
        ids = [f"{number:032x}" for number in range(len(texts))]
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            near = centres[random.integers(0, CENTRES, len(texts[part]))] + random.normal(size=(len(texts[part]), DIMENSIONS))
            documents = [Document(page_content=text, id=name) for text, name in zip(texts[part], ids[part], strict=True)]
            store.put(documents, near / np.linalg.norm(near, axis=1, keepdims=True))
        store.finish()
        ways = {
            name: HybridRetriever(store=store, access=None, dense_weight=0.6, top_k=4, ranking=Ranking(rerank))
            for name, rerank in (("rank", "lexical"), ("rank, no reranker", "none"))
        }
        seconds = {stage: [] for stage in ("embed", "words", "vectors", "search", *ways, "search and rank", "all")}
        for _ in range(options.questions):
            # A question is a few words of a text, and near that text's vector.
            text = texts[int(random.integers(len(texts)))]
            question = " ".join(text.split()[10:22]) or text[20:40]
            near = centres[int(random.integers(CENTRES))]
            vector = (near / np.linalg.norm(near)).tolist()
            timed(seconds["embed"], embeddings.embed_query, question)
            timed(seconds["words"], store.matching, question, 100, None)
            timed(seconds["vectors"], store.nearest, vector, 100, None)
            found = timed(seconds["search"], ways["rank"].candidates, question, vector)
            for name, way in ways.items():
                timed(seconds[name], way.rank, question, found)
            seconds["search and rank"].append(seconds["search"][-1] + seconds["rank"][-1])
            seconds["all"].append(seconds["embed"][-1] + seconds["search and rank"][-1])
    for stage, times in seconds.items():
        p50, p95 = np.percentile(times, (50, 95)) * 1000
        print(f"{stage:18} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms")


def timed(times: list[float], function: Callable[..., Any], *arguments: object) -> Any:
    """Call it, and note the seconds."""
    started = time.perf_counter()
    result = function(*arguments)
    times.append(time.perf_counter() - started)
    return result


if __name__ == "__main__":
    main()
