"""The evaluation over doubles of the embedding model: what counts, and what a second run costs."""

import json

import pytest
from typer.testing import CliRunner

from rag.evaluate import evaluate
from rag.judgements import Judged
from services.cli import app

DOCUMENTS = {
    "gold": ("Metals", "gold is a yellow metal that does not rust"),
    "tea": ("", "green tea is steeped in hot water\n\nblack tea is left to oxidise before it is dried"),
    "茶": ("", "绿茶是不发酵的茶"),
    "empty": ("only a title", " "),
}
QUERIES = {"q1": "which metal does not rust", "q2": "绿茶发酵吗", "q3": "only a title"}
GRADES = {"q1": {"gold": 1}, "q2": {"茶": 1}, "q3": {"empty": 1}}


@pytest.fixture
def pooled(embeddings):
    class Pooled(embeddings):
        name = "double"

        def embed_queries(self, texts):
            return self.embed_documents(texts)

    return Pooled


def run(model, cache, **changes):
    given = {"chunk_characters": 4000, "progress": lambda *_: None, **changes}
    judged = Judged(DOCUMENTS, QUERIES, GRADES)
    return evaluate(judged, {"hybrid": {"dense_weight": 0.0}}, embeddings=model, cache=cache, **given)


def test_the_report(pooled, tmp_path):
    report = run(pooled(), tmp_path).report()

    assert (report["queries"], report["documents"], report["chunks"], report["refused"]) == (3, 4, 4, {})
    assert set(report["by_system"]) == {"bm25", "dense", "hybrid"}
    assert report["by_system"]["bm25"]["recall@5"] == report["by_system"]["hybrid"]["recall@5"] == 1
    assert {k: v["queries"] for k, v in report["by_system"]["dense"]["by_language"].items()} == {"en": 2, "zh": 1}
    assert set(report["comparisons"]) == {"hybrid - bm25", "hybrid - dense"}
    assert set(report["latency_ms"]) == {"embed", "search", "rank", "total"}
    json.dumps(report)


def test_chunks_are_folded_to_documents(pooled, tmp_path):
    """A document in several chunks stands once in a ranking."""
    evaluation = run(pooled(), tmp_path, chunk_characters=40)

    assert evaluation.chunks > evaluation.documents
    assert evaluation.report()["by_system"]["bm25"]["ndcg@10"] == 1


def test_a_second_run_and_a_killed_one_embed_nothing_twice(pooled, tmp_path):
    first, second = pooled(), pooled()
    run(first, tmp_path)
    run(second, tmp_path)

    assert len(first.asked) == 7
    assert second.asked == []


def test_bad_input_ends_the_command_with_an_error(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d"}\n')
    files = [f"--{name}={tmp_path / 'corpus.jsonl'}" for name in ("corpus", "queries", "qrels")]
    ended = CliRunner().invoke(app, ["rag", "eval", *files])

    assert ended.exit_code == 1
    assert "corpus.jsonl:1: has no 'text'" in ended.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [("top_k=3", "is not KEY=VALUE"), ("dense_weight", "is not KEY=VALUE"), ("dense_weight=2", "less than or equal")],
)
def test_a_setting_that_is_none_is_refused(tmp_path, setting, message):
    files = [f"--{name}={tmp_path / 'none.jsonl'}" for name in ("corpus", "queries", "qrels")]
    ended = CliRunner().invoke(app, ["rag", "eval", *files, "--set", setting])

    assert ended.exit_code == 1
    assert message in ended.stderr
