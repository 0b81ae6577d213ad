"""Make `ranker.yaml`: the few weights of the lexical reranker and of its estimate of relevance.

    python -m rag.train_ranker DATA --cache EKIBEN_CACHE_DIR/vectors [--write]

DATA holds folders in the form of BEIR. The order is learnt by a softmax over the candidates of each query, the relevance by a
logistic regression over the same candidates and over those that queries find in a corpus of another set, where nothing answers.
Every set counts the same. Prints figures of queries that were not trained on: five folds by query, and each set by the others.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rag.evaluate import Indexed, PooledEmbeddings, indexed, query_vectors
from rag.judgements import Judged, read_judged
from rag.metrics import judge
from rag.ranking import FEATURES, RERANKED, Candidates, apart, fuse, measure, scale, trust
from rag.retriever import HybridRetriever

SETS = {
    "scifact": "claims CC BY 4.0, abstracts ODC-By 1.0",
    "xquad-en": "CC BY-SA 4.0",
    "xquad-zh": "CC BY-SA 4.0",
    "cmrc2018": "CC BY-SA 4.0",
    "drcd": "CC BY-SA 3.0",
}
ORDERED = FEATURES[:-1]  # the scaled cosine is in the order already
RELEVANT = ("text", "sentence", "pairs", "cosine")  # what can be compared from one query to another
_RELEVANT = [FEATURES.index(name) for name in RELEVANT]
STRANGERS = {"scifact": "xquad-en", "xquad-en": "scifact", "xquad-zh": "drcd", "cmrc2018": "drcd", "drcd": "xquad-zh"}
"""Whose corpus does not answer the queries of a set."""
DENSE_WEIGHT = 0.5
FOLDS = 5
L2 = 1e-3
CHUNK_CHARACTERS = 4000
SHOWN = 5  # passages that may reach a prompt
MOST = 600  # queries of a set; every set weighs the same
STRANGE = 200  # queries of each set that are asked of a stranger's corpus
LIMITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Query:
    """The best candidates of a query: FEATURES, scaled cosines, fused scores, which of them answer; and the whole ranking."""

    name: str
    features: Any
    dense: Any
    fused: Any
    lexical: float
    answers: Any
    documents: list[str]
    grades: dict[str, int]

    def best(self, order: Any) -> Any:
        """Return the places of the candidates with these weights of ORDERED, best first."""
        return np.argsort(-self.fused - self.lexical * (self.features[:, : len(ORDERED)] @ order), kind="stable")

    def judge(self, order: Any) -> tuple[float, ...]:
        """Return the figures of the ranking with these weights of ORDERED."""
        best = self.best(order)
        ranking = [self.documents[place] for place in best] + self.documents[len(best) :]
        return judge(list(dict.fromkeys(ranking)), self.grades)


def queries_of(judged: Judged, bench: Indexed, asked: Judged, vectors: dict[str, list[float]]) -> list[Query]:
    """Ask the queries of `asked` in the index of `judged`; documents of other sets answer nothing."""
    retriever = HybridRetriever(store=bench.store, access=None, dense_weight=DENSE_WEIGHT, top_k=RERANKED)
    found: list[Query] = []
    every = asked is judged
    for name, text in list(asked.queries.items())[: MOST if every else STRANGE]:
        candidates: Candidates = retriever.candidates(text, vectors[name])
        scaled = scale(candidates)
        names = fuse(scaled, DENSE_WEIGHT)
        dense_weight, lexical = trust(DENSE_WEIGHT, apart(scaled))
        best = names[:RERANKED]
        features = measure(candidates, scaled, text, best)
        grades = asked.grades[name] if every else {}
        documents = [bench.documents[chunk] for chunk in names]
        found.append(
            Query(
                name, np.array(features), np.array([scaled[chunk][0] for chunk in best]),
                np.array([scaled[chunk] for chunk in best]) @ (dense_weight, 1 - dense_weight), lexical,
                np.array([document in grades for document in documents[: len(best)]]), documents, grades,
            )
        )  # fmt: skip
    return found


def fit_order(sets: list[list[Query]]) -> Any:
    """Return the weights of ORDERED beside the scaled cosine, by a softmax over each query's candidates."""
    from scipy.optimize import minimize

    rows: list[Any] = []
    targets: list[Any] = []
    shares: list[Any] = []
    sizes: list[int] = []
    for queries in sets:
        useful = [query for query in queries if query.answers.any()]
        for query in useful:
            rows.append(np.column_stack([query.dense, query.features[:, : len(ORDERED)]]))
            targets.append(query.answers / query.answers.sum())
            shares.append(np.full(len(query.dense), 1 / len(useful)))
            sizes.append(len(query.dense))
    x, target, share = np.concatenate(rows), np.concatenate(targets), np.concatenate(shares)
    starts, owner = np.cumsum([0, *sizes[:-1]]), np.repeat(np.arange(len(sizes)), sizes)

    def loss(weights: Any) -> tuple[float, Any]:
        scores = x @ weights
        scores = scores - np.maximum.reduceat(scores, starts)[owner]
        powers = np.exp(scores)
        sums = np.add.reduceat(powers, starts)[owner]
        value = -(share * target * (scores - np.log(sums))).sum() + L2 * weights @ weights
        return value, x.T @ (share * (powers / sums - target)) + 2 * L2 * weights

    weights: Any = minimize(loss, np.array([10.0] + [0.0] * len(ORDERED)), jac=True, method="L-BFGS-B").x
    return weights[1:] / weights[0] * DENSE_WEIGHT / (1 - DENSE_WEIGHT)


def fit_relevance(sets: list[list[Query]], strangers: list[list[Query]], order: Any) -> tuple[Any, float]:
    """Return weights of RELEVANT and a bias: the log odds that a passage answers.

    Only the first of each ranking counts: nobody asks of the fiftieth whether it answers.
    """
    from sklearn.linear_model import LogisticRegression

    rows: list[Any] = []
    answers: list[Any] = []
    shares: list[Any] = []
    for queries in [*sets, *strangers]:
        for query in queries:
            best = query.best(order)[:SHOWN]
            rows.append(query.features[best][:, _RELEVANT])
            answers.append(query.answers[best])
            shares.append(np.full(len(best), 1 / len(queries) / len(best)))
    model: Any = LogisticRegression(C=100.0, max_iter=2000)
    weight = np.concatenate(shares)
    model.fit(np.concatenate(rows), np.concatenate(answers), sample_weight=weight / weight.mean())
    return model.coef_[0], float(model.intercept_[0])


def gather(data: Path, names: list[str], cache: Path, workers: int) -> tuple[dict[str, list[Query]], dict[str, list[Query]]]:
    """Return name -> queries with the candidates of their own corpus, and of a stranger's."""
    judged = {
        name: read_judged(data / name / "corpus.jsonl.gz", data / name / "queries.jsonl.gz", data / name / "qrels.tsv")
        for name in names
    }
    own: dict[str, list[Query]] = {}
    strange: dict[str, list[Query]] = {}
    with PooledEmbeddings(workers) as embeddings:

        def tell(step: str, done: int, total: int) -> None:
            if done == total or not done % 1024:
                sys.stderr.write(f"{step}: {done}/{total}\n")

        for name, content in judged.items():
            with indexed(content, embeddings=embeddings, cache=cache, chunk_characters=CHUNK_CHARACTERS, progress=tell) as bench:
                own[name] = queries_of(content, bench, content, bench.vectors)
                for asker in (asker for asker, host in STRANGERS.items() if host == name and asker in judged):
                    vectors = query_vectors(judged[asker], embeddings, cache, tell)
                    strange[asker] = queries_of(content, bench, judged[asker], vectors)
    return own, strange


def _ndcg(queries: list[Query], order: Any) -> tuple[float, float]:
    ndcg, recall, *_ = np.mean([query.judge(order) for query in queries], axis=0)
    return float(ndcg), float(recall)


def _fold(query: Query) -> int:
    return zlib.crc32(query.name.encode()) % FOLDS


def cross_validate(own: dict[str, list[Query]], trained: list[str]) -> None:
    """Print figures of queries that the weights have not seen."""
    parts: dict[str, list[tuple[int, float, float]]] = {name: [] for name in own}
    for fold in range(FOLDS):
        order = fit_order([[query for query in own[name] if _fold(query) != fold] for name in trained])
        for name, queries in own.items():
            asked = [query for query in queries if _fold(query) == fold]
            parts[name].append((len(asked), *_ndcg(asked, order)))
    for name, queries in own.items():
        others = [own[other] for other in trained if other != name]
        count = len(queries)
        ndcg, recall = (sum(part[0] * part[column] for part in parts[name]) / count for column in (1, 2))
        alone = _ndcg(queries, fit_order(others))[0] if others else float("nan")
        fused = np.mean([judge(list(dict.fromkeys(query.documents)), query.grades) for query in queries], axis=0)
        sys.stdout.write(
            f"{name:10} fusion nDCG@10 {fused[0]:.4f} recall@5 {fused[1]:.4f}; reranked {ndcg:.4f} {recall:.4f}; "
            f"by the other sets {alone:.4f}\n"
        )


def print_refusals(own: dict[str, list[Query]], strange: dict[str, list[Query]], order: Any) -> None:
    """Print of each set, by estimates made on the others, how often every shown passage is under a threshold.

    Wrong for queries that the corpus answers among the shown passages, right for those in a stranger's corpus.
    """
    for name, strangers in strange.items():
        others = [other for other in strange if other != name]
        weights, bias = fit_relevance([own[other] for other in others], [strange[other] for other in others], order)

        def estimates(query: Query, weights: Any = weights, bias: float = bias) -> Any:
            return 1 / (1 + np.exp(-bias - query.features[query.best(order)[:SHOWN]][:, _RELEVANT] @ weights))

        answered = [query for query in own[name] if query.answers[query.best(order)[:SHOWN]].any()]
        wrong, right = (np.array([estimates(query).max() for query in part]) for part in (answered, strangers))
        told = ", ".join(f"{limit}: {(wrong < limit).mean():.3f}/{(right < limit).mean():.3f}" for limit in LIMITS)
        sys.stdout.write(f"{name:10} refused wrongly/rightly under {told}\n")


def main() -> None:
    """Train, print, and write where that is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--also", nargs="*", default=[], help="sets that are measured and never trained on")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    own, strange = gather(options.data, [*options.sets, *options.also], options.cache, options.workers)
    cross_validate(own, options.sets)
    trained = [own[name] for name in options.sets]
    order = fit_order(trained)
    relevance, bias = fit_relevance(trained, [strange[name] for name in options.sets if name in strange], order)
    if len(strange) > 1:
        print_refusals(own, strange, order)
    made = {
        "order": {name: round(float(weight), 4) for name, weight in zip(ORDERED, order, strict=True)},
        "relevance": {name: round(float(weight), 4) for name, weight in zip(RELEVANT, relevance, strict=True)},
        "bias": round(bias, 4),
    }
    text = yaml.safe_dump(made, sort_keys=False)
    sys.stdout.write(text)
    if options.write:
        trained_on = "".join(f"#   {name}: {len(own[name])} queries, {SETS[name]}\n" for name in options.sets)
        head = (
            f"# Made by rag/train_ranker.py with dense_weight {DENSE_WEIGHT}; the keys are explained in rag/ranking.py. From:\n"
        )
        Path(__file__).with_name("ranker.yaml").write_text(head + trained_on + text, encoding="utf-8")


if __name__ == "__main__":
    main()
