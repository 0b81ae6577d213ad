"""Measure the way of a question through a large collection on one processor: its vector, both searches, the ranking.

    OMP_NUM_THREADS=1 python -m benchmarks.retrieval --chunks 100000

What is real: the embedding model, the questions it embeds, and some hundred passages (the documents of this repository, or
`--corpus`) with their vectors. What is made up: the other vectors, each a mix of two real ones (the share of the first is even
between 0.5 and 1) with noise of a third of its length; and the texts, sentences of words drawn as often as in a language
(Zipf-Mandelbrot), every other text Chinese. Words are asked for as runs of 12 words, or 20 characters, of a text.

Prints p50 and p95 of each stage in ms, as time passes and of the processor's work (where others work beside, the former says
little), memory, and how fast documents come in beside the embedding model's own bound; the last
line is JSON.
"""

import argparse
import gzip
import hashlib
import json
import os  # noqa: TID251  which processors there are
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from langchain_core.documents import Document

from rag.embedded import EmbeddedStore
from rag.embedding import MultilingualE5
from rag.index import Recipe, build_index
from rag.ranking import Ranking
from rag.retriever import CANDIDATES, HybridRetriever
from rag.store import searched
from rag.survey import Item, Place, Survey

ROOT = Path(__file__).resolve().parents[1]
SEED = 7
WORDS, HAN = 50_000, 3500  # the vocabulary; characters in common use
SENTENCES, SENTENCE = 6, 20  # of a chunk; words of one, and half as many again of characters
RUN, HAN_RUN = 12, 20  # of a question
NOISE = 1 / 3
BATCH = 10_000
WARM = 10  # questions before the measured ones; these open files
REAL = 100  # documents at most that are embedded; those of --corpus
Seconds = dict[str, list[tuple[float, float]]]
QUESTIONS = (
    "Which chunks does a second run embed again?", "How is a document over 50 MiB handled?",
    "What happens when the server is away?",
    "May a caller without a role find documents with labels?", "How do I go back to an earlier version of the index?",
    "Which encodings of text files are recognised?", "What does a train ticket cost when it is refunded on the day before?",
    "Where do the weights of the reranker come from?", "怎样退票，手续费是多少？", "没有角色的用户能看到带标签的文档吗？",
    "索引的旧版本怎么恢复？", "超过五十兆的文件会怎么处理？", "第二次运行的时候哪些文本需要重新计算向量？",
)  # fmt: skip


def passages(corpora: list[Path]) -> Survey:
    """Return real documents: of JSONL files with a `text` a line (also .gz), or of this repository."""
    if not corpora:
        return Place(ROOT, ["docs", "rag/documents"]).survey()
    items: list[Item] = []
    for corpus in corpora:
        with (gzip.open if corpus.suffix == ".gz" else open)(corpus, "rb") as lines:
            for number, line in enumerate(lines):
                data = json.loads(line)["text"].encode()
                content = hashlib.sha256(data).hexdigest()
                items.append(Item(f"{corpus.parent.name}:{number}", ".txt", content, lambda data=data: data))
    return Survey(items[:: max(1, len(items) // REAL)][:REAL])


def made_texts(random: np.random.Generator, count: int) -> Iterator[str]:
    """Yield texts, every other one Chinese."""
    words, han = (1 / (np.arange(1, size + 1) + shift) for size, shift in ((WORDS, 2.7), (HAN, 3.0)))
    words, han = words / words.sum(), han / han.sum()
    names = np.array([word_of(rank) for rank in range(WORDS)])
    signs = np.array([chr(0x4E00 + rank) for rank in range(HAN)])
    for _ in range(0, count, BATCH):
        latin = names[random.choice(WORDS, (BATCH // 2, SENTENCES, SENTENCE), p=words)]
        chinese = signs[random.choice(HAN, (BATCH // 2, SENTENCES, SENTENCE * 3 // 2), p=han)]
        for english, other in zip(latin.tolist(), chinese.tolist(), strict=True):
            yield " ".join(" ".join(sentence) + "." for sentence in english)
            yield "".join("".join(sentence) + "。" for sentence in other)


def word_of(rank: int) -> str:
    """Return a word that can be spoken; common ones are short."""
    word = ""
    while True:
        rank, place = divmod(rank, 85)
        word += "bcdfghjklmnprstvz"[place // 5] + "aeiou"[place % 5]
        if not rank:
            return word
        rank -= 1


def made_vectors(random: np.random.Generator, real: Any, count: int) -> Any:
    """Return unit vectors around mixes of two real ones, an array of float32 (count, dimensions)."""
    share = random.uniform(0.5, 1, (count, 1))
    one, other = (real[random.integers(len(real), size=count)] for _ in range(2))
    mixed = share * one + (1 - share) * other
    noise = random.normal(size=mixed.shape)
    mixed = mixed / np.linalg.norm(mixed, axis=1, keepdims=True) + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def ingested(survey: Survey, embeddings: MultilingualE5) -> tuple[Any, dict[str, float]]:
    """Index real documents; return their vectors, and chunks a second of the whole and of the embedding model alone."""
    with tempfile.TemporaryDirectory() as folder:
        report = build_index(survey, Path(folder), Recipe(900, embeddings.name), embeddings=embeddings)
        found = [
            (d, v)
            for many, vectors in EmbeddedStore(Path(folder), embeddings).batches()
            for d, v in zip(many, vectors, strict=True)
        ]
    some = [searched(document) for document, _ in found][:: max(1, len(found) // 50)]
    started = time.perf_counter()
    embeddings.embed_documents(some)
    rates = {"whole": report.embedded / report.seconds, "embedder": len(some) / (time.perf_counter() - started)}
    return np.stack([vector for _, vector in found]), rates


def fill(store: EmbeddedStore, texts: list[str], real: Any, random: np.random.Generator) -> float:
    """Put made-up chunks into a store; return chunks a second."""
    seconds = 0.0
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        vectors = made_vectors(random, real, len(part))
        documents = [
            Document(
                page_content=text, id=hashlib.sha256(text.encode()).hexdigest()[:32],
                metadata={"source": f"{number // 20}.md", "heading": "", "position": number % 20, "parent": str(number // 20)},
            )
            for number, text in enumerate(part, start=start)
        ]  # fmt: skip
        started = time.perf_counter()
        store.put(documents, vectors)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    store.finish()
    return len(texts) / (seconds + time.perf_counter() - started)


def asked(store: EmbeddedStore, texts: list[str], questions: Sequence[str], count: int, random: np.random.Generator) -> Seconds:
    """Ask, by stage and as a whole; return stage -> seconds that passed and seconds of work, of each question."""
    embeddings = store.embeddings
    ways = {
        name: HybridRetriever(store=store, access=None, dense_weight=0.5, top_k=4, ranking=Ranking(rerank))
        for name, rerank in (("rank", "lexical"), ("rank, none", "none"))
    }
    seconds: Seconds = {}
    for number in range(count + WARM):
        if number == WARM:
            seconds = {}
        question, text = questions[number % len(questions)], texts[int(random.integers(len(texts)))]
        sought = " ".join(text.split()[10 : 10 + RUN]) if " " in text else text[20 : 20 + HAN_RUN]
        vector = timed(seconds, "embed", embeddings.embed_query, question)
        timed(seconds, "nearest", store.nearest, vector, CANDIDATES, None)
        timed(seconds, "matching", store.matching, sought, CANDIDATES, None)
        found = timed(seconds, "search", ways["rank"].candidates, sought, vector)
        for name, way in ways.items():
            timed(seconds, name, way.rank, sought, found)
        timed(seconds, "whole", lambda: ways["rank"].search(sought, embeddings.embed_query(question)))  # noqa: B023  called now
    return seconds


def timed(seconds: Seconds, stage: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call it, and note the seconds that passed, and those of processors."""
    started, worked = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds.setdefault(stage, []).append((time.perf_counter() - started, time.process_time() - worked))
    return result


def percentiles(times: list[tuple[float, float]]) -> dict[str, float]:
    """Return p50 and p95 in ms, of time and of work."""
    (wall50, cpu50), (wall95, cpu95) = np.percentile(times, (50, 95), axis=0) * 1000
    return {"p50": float(wall50), "p95": float(wall95), "cpu_p50": float(cpu50), "cpu_p95": float(cpu95)}


def on_one_processor() -> None:
    """Keep every thread of this process on one of its processors."""
    one = {min(os.sched_getaffinity(0))}
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), one)


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument(
        "--corpus", type=Path, action="append", default=[], help="JSONL with a `text` a line, in place of our documents"
    )
    parser.add_argument(
        "--queries", type=Path, action="append", default=[], help="JSONL with a `text` a line, in place of our questions"
    )
    parser.add_argument("--folder", type=Path, help="keep the index here, and use what is here already")
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    questions = [document.read().decode() for document in passages(options.queries).items] if options.queries else list(QUESTIONS)
    embeddings = MultilingualE5()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        texts = list(made_texts(random, options.chunks))[: options.chunks]
        told: dict[str, Any] = {"chunks": options.chunks}
        if not (folder / "bm25").is_dir():
            real, told["real_chunks_per_second"] = ingested(passages(options.corpus), embeddings)
            told["stored_chunks_per_second"] = fill(EmbeddedStore(folder, embeddings), texts, real, random)
        embeddings.embed_query("warm")
        before = psutil.Process().memory_full_info()
        started = time.perf_counter()
        store = EmbeddedStore(folder, embeddings)
        told["open_seconds"] = time.perf_counter() - started
        on_one_processor()
        seconds = asked(store, texts, questions, options.questions, random)
        after = psutil.Process().memory_full_info()
        told["memory_mib"] = {name: (getattr(after, name) - getattr(before, name)) / 2**20 for name in ("rss", "uss")}
    told["ms"] = {stage: percentiles(times) for stage, times in seconds.items()}
    for stage, ms in told["ms"].items():
        print(f"{stage:12}" + "".join(f"   {name} {value:6.1f}" for name, value in ms.items()))
    for name, value in told.items():
        if name != "ms":
            print(f"{name}: {value}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
