"""How well a collection of these documents would be searched: words alone, vectors alone, and as a route searches.

The documents go through the product's own index and retriever. Chunks are folded to documents: a document stands where its best
chunk stands.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.embeddings import Embeddings

from rag.embedded import EmbeddedStore
from rag.embedding import MultilingualE5
from rag.index import Recipe, build_index
from rag.language import language_of
from rag.metrics import METRICS, Difference, compare, judge
from rag.ranking import RERANKED
from rag.report import Report
from rag.retriever import HybridRetriever
from rag.scratch import Scratch, embed_missing, key_of
from rag.survey import Item, Survey

if TYPE_CHECKING:
    from multiprocessing.pool import Pool

    from rag.embedding import Kind
    from rag.judgements import Judged

DEPTH = RERANKED  # chunks of a ranking; recall@20 needs 20 documents
TIMED = 200  # queries whose latency is measured
BASELINES = ("bm25", "dense")
Progress = Callable[[str, int, int], None]
"""Is told of a step how much is done, and of how much."""

_model: MultilingualE5 | None = None


def _embed(kind: Kind, text: str) -> list[float]:
    global _model  # noqa: PLW0603  one model for each worker process
    _model = _model or MultilingualE5()
    return _model.embed(text, kind).vector


class PooledEmbeddings(Embeddings):
    """The product's embedding model in several processes. Use as a context manager."""

    name = MultilingualE5.name

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages."""
        return self._map("passage", texts)

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """Embed questions."""
        return self._map("query", texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a question in this process."""
        return _embed("query", text)

    def _map(self, kind: Kind, texts: list[str]) -> list[list[float]]:
        if self._workers == 1:
            return [_embed(kind, text) for text in texts]
        # Threads of LanceDB and BLAS do not survive a fork.
        self._pool = self._pool or multiprocessing.get_context("spawn").Pool(self._workers)
        return self._pool.map(partial(_embed, kind), texts, chunksize=1)


@dataclass(frozen=True)
class Evaluation:
    """Figures of every query: `figures` maps a system to an array (queries, METRICS); `seconds` maps a stage to latencies."""

    figures: dict[str, Any]
    languages: list[str]
    documents: int
    chunks: int
    refused: dict[str, str]
    settings: dict[str, dict[str, object]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Return what `ekiben rag eval --json` prints."""
        return {
            "by_system": {system: self._of_system(figures) for system, figures in self.figures.items()},
            "comparisons": {
                f"{one} - {other}": {metric: asdict(self.difference(one, other, metric)) for metric in METRICS}
                for one, other in self.pairs()
            },
            "latency_ms": {stage: _percentiles(seconds) for stage, seconds in self.seconds.items()},
            "queries": len(self.languages),
            "documents": self.documents,
            "chunks": self.chunks,
            "refused": self.refused,
            "settings": self.settings,
        }

    def pairs(self) -> list[tuple[str, str]]:
        """Return which systems are compared: hybrid with both baselines, and each other configuration with hybrid."""
        others = [system for system in self.figures if system not in {*BASELINES, "hybrid"}]
        return [("hybrid", baseline) for baseline in BASELINES] + [(other, "hybrid") for other in others]

    def difference(self, one: str, other: str, metric: str) -> Difference:
        """Return how much better one system is than another."""
        column = METRICS.index(metric)
        return compare(self.figures[one][:, column], self.figures[other][:, column])

    def _of_system(self, figures: Any) -> dict[str, Any]:
        import numpy as np

        spoken = np.array(self.languages)
        by_language = {
            language or "other": {**_means(figures[spoken == language]), "queries": int((spoken == language).sum())}
            for language in sorted(set(self.languages))
        }
        return {**_means(figures), "by_language": by_language}


def _means(figures: Any) -> dict[str, float]:
    return {metric: float(mean) for metric, mean in zip(METRICS, figures.mean(axis=0), strict=True)}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    import numpy as np

    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50": round(float(p50) * 1000, 3), "p95": round(float(p95) * 1000, 3)}


@dataclass(frozen=True)
class Indexed:
    """Judged documents in an index, and the vectors of the queries."""

    store: EmbeddedStore
    vectors: dict[str, list[float]]
    documents: dict[str, str]
    """The document of each chunk."""
    report: Report


@contextmanager
def indexed(
    judged: Judged, *, embeddings: PooledEmbeddings, cache: Path, chunk_characters: int, progress: Progress
) -> Generator[Indexed]:
    """Index the documents for the length of the block; raises UnusableIndex.

    Vectors are kept in `cache` by digest of their text: what was embedded once, even by a killed run, is not embedded again.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder)
        report = build_index(
            _survey(judged), index, Recipe(chunk_characters, embeddings.name), embeddings=embeddings,
            scratch=cache / embeddings.name / "passage", progress=partial(progress, "embedding passages"),
        )  # fmt: skip
        vectors = query_vectors(judged, embeddings, cache, progress)
        store = EmbeddedStore(index, embeddings)
        documents = {str(chunk.id): str(chunk.metadata["source"]) for batch, _ in store.batches() for chunk in batch}
        yield Indexed(store, vectors, documents, report)


def evaluate(
    judged: Judged, systems: Mapping[str, Mapping[str, object]], *, embeddings: PooledEmbeddings, cache: Path,
    chunk_characters: int, progress: Progress,
) -> Evaluation:  # fmt: skip
    """Index the documents, ask every query of both baselines and of `systems`, and judge the rankings.

    `systems` maps "hybrid" and names of other configurations to settings of HybridRetriever. Raises UnusableIndex.
    """
    import numpy as np

    with indexed(judged, embeddings=embeddings, cache=cache, chunk_characters=chunk_characters, progress=progress) as bench:
        store = bench.store
        hybrids = {
            name: HybridRetriever.model_validate({"store": store, "access": None, **settings, "top_k": DEPTH})
            for name, settings in systems.items()
        }
        rankings: dict[str, list[tuple[float, ...]]] = {name: [] for name in (*BASELINES, *hybrids)}
        for done, (query, text) in enumerate(judged.queries.items(), start=1):
            vector = bench.vectors[query]
            found = {
                "bm25": list(store.matching(text, DEPTH, None)),
                "dense": [str(near.document.id) for near in store.nearest(vector, DEPTH, None)],
                **{name: [str(chunk.id) for chunk in hybrid.search(text, vector)] for name, hybrid in hybrids.items()},
            }
            for system, chunks in found.items():
                documents = list(dict.fromkeys(bench.documents[chunk] for chunk in chunks))
                rankings[system].append(judge(documents, judged.grades[query]))
            progress("searching", done, len(judged.queries))
        seconds = _latencies(hybrids["hybrid"], list(judged.queries.values()), embeddings)
    return Evaluation(
        {system: np.array(figures) for system, figures in rankings.items()},
        [language_of(text) for text in judged.queries.values()],
        len(judged.documents), bench.report.chunks, bench.report.refused,
        {name: dict(told) for name, told in systems.items()}, seconds,
    )  # fmt: skip


def _survey(judged: Judged) -> Survey:
    items: list[Item] = []
    for name, (title, text) in judged.documents.items():
        # A document that is a title only is found by it.
        data, title_left = (text.encode("utf-8", "replace"), title) if text.strip() else (title.encode("utf-8", "replace"), "")
        items.append(Item(name, ".txt", hashlib.sha256(data).hexdigest(), lambda data=data: data, title=title_left))
    return Survey(items)


def query_vectors(judged: Judged, embeddings: PooledEmbeddings, cache: Path, progress: Progress) -> dict[str, list[float]]:
    """Return query -> vector; kept in `cache` as those of passages are."""
    scratch = Scratch(cache / embeddings.name / "query")
    known = scratch.vectors()
    texts = {key_of(text): text for text in judged.queries.values()}
    embed_missing(texts, known, scratch, embeddings.embed_queries, partial(progress, "embedding queries"))
    return {query: known[key_of(text)].tolist() for query, text in judged.queries.items()}


def _latencies(hybrid: HybridRetriever, queries: list[str], embeddings: Embeddings) -> dict[str, list[float]]:
    """Time the way of a query, one at a time: its vector, both searches, the ranking."""
    seconds: dict[str, list[float]] = {"embed": [], "search": [], "rank": [], "total": []}
    embeddings.embed_query("warm")
    for text in queries[:: max(1, len(queries) // TIMED)][:TIMED]:
        times = [time.perf_counter()]
        vector = embeddings.embed_query(text)
        times.append(time.perf_counter())
        candidates = hybrid.candidates(text, vector)
        times.append(time.perf_counter())
        hybrid.rank(text, candidates)
        times.append(time.perf_counter())
        for stage, start, end in zip(seconds, (*times[:3], times[0]), (*times[1:], times[3]), strict=True):
            seconds[stage].append(end - start)
    return seconds
