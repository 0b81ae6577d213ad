import gzip
import json

import pytest

from rag.judgements import BadJudgements, Question, read_judged, read_questions

CORPUS = [{"_id": "d1", "title": "One", "text": "first"}, {"_id": "d2", "text": "second"}]
QUERIES = [{"_id": "q1", "text": "which?", "split": "dev"}, {"_id": "q2", "text": "who?", "split": "test"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td2\t2\n"


@pytest.fixture
def files(tmp_path):
    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
        paths = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
        for path, content in zip(paths, (corpus, queries, qrels), strict=True):
            path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
        return paths

    return write


def test_what_is_read(files):
    judged = read_judged(*files())

    assert judged.documents == {"d1": ("One", "first"), "d2": ("", "second")}
    assert judged.queries == {"q1": "which?", "q2": "who?"}
    assert judged.grades == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_gzip_and_no_header(files, tmp_path):
    corpus, queries, qrels = files(qrels="q1\td1\t1\n")
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))

    assert read_judged(packed, queries, qrels).grades == {"q1": {"d1": 1}}


def test_columns_in_the_order_of_the_header(files):
    qrels = "score\tsplit\tcorpus-id\tquery-id\n1\tdev\td1\tq1\n1\ttest\td2\tq2\n"

    assert read_judged(*files(qrels=qrels), split="test").grades == {"q2": {"d2": 1}}


def test_a_split_of_the_queries_where_qrels_have_none(files):
    assert list(read_judged(*files(), split="dev").queries) == ["q1"]


def test_a_query_whose_judgements_are_all_zero_does_not_count(files):
    judged = read_judged(*files(qrels="q1\td1\t0\nq2\td2\t1\n"))

    assert list(judged.queries) == ["q2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": ""}, r"corpus.jsonl: empty"),
        ({"queries": "\n\n"}, r"queries.jsonl: empty"),
        ({"qrels": ""}, r"qrels.tsv: empty"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, "no query is judged"),
        ({"corpus": '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n'}, r"corpus.jsonl:2: the id 'd1' stands twice"),
        ({"corpus": '{"_id": "d1"}\n'}, r"corpus.jsonl:1: has no 'text'"),
        ({"corpus": '{"_id": "d1", "text": 3}\n'}, r"corpus.jsonl:1: 'text' is not a string"),
        ({"queries": '{"text": "a"}\n'}, r"queries.jsonl:1: has no '_id'"),
        ({"queries": "[]\n"}, r"queries.jsonl:1: not an object"),
        ({"queries": "{\n"}, r"queries.jsonl:1: no JSON"),
        ({"qrels": "query-id\tscore\nq1\t1\n"}, r"qrels.tsv:1: has no column 'corpus-id'"),
        ({"qrels": "q1 d1 1\n"}, r"qrels.tsv:1: has no column 'corpus-id'"),
        ({"qrels": QRELS + "q1\td1\n"}, r"qrels.tsv:5: 2 columns instead of 3"),
        ({"qrels": QRELS + "q9\td1\t1\n"}, r"qrels.tsv:5: no query 'q9' in queries.jsonl"),
        ({"qrels": QRELS + "q2\td9\t1\n"}, r"qrels.tsv:5: no document 'd9' in corpus.jsonl"),
        ({"qrels": QRELS + "q2\td1\tyes\n"}, r"qrels.tsv:5: score 'yes' is not a whole number"),
        ({"qrels": QRELS + "q1\td1\t1\n"}, r"qrels.tsv:5: query 'q1' and document 'd1' are judged twice"),
    ],
)
def test_what_cannot_be_used_is_named(files, changed, message):
    with pytest.raises(BadJudgements, match=message):
        read_judged(*files(**changed))


def test_files_that_are_not_there_or_no_text(files, tmp_path):
    corpus, queries, qrels = files()
    with pytest.raises(BadJudgements, match="cannot be read"):
        read_judged(tmp_path / "none.jsonl", queries, qrels)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(BadJudgements, match="cannot be read"):
        read_judged(broken, queries, qrels)
    with pytest.raises(BadJudgements, match="no query is judged in the split 'train'"):
        read_judged(corpus, queries, qrels, split="train")


def questions(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_questions(path)


def test_questions(tmp_path):
    whole = {"_id": 7, "text": "which?", "answers": ["a", "b"], "sources": ["d"], "split": "dev"}
    read = questions(tmp_path, whole, {"_id": "q2", "text": "who?", "answerable": False, "answers": []})

    assert read == [Question("7", "which?", ("a", "b"), sources=("d",)), Question("q2", "who?", answerable=False)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "no JSON"),
        ({"_id": "1"}, "has no 'text'"),
        ({"_id": "1", "text": " "}, "'text' is empty"),
        ({"_id": "0", "text": "x"}, "stands twice"),
        ({"_id": "1", "text": "x", "answers": "y"}, "'answers' is not a list of texts"),
        ({"_id": "1", "text": "x", "answers": [""]}, "'answers' is not a list of texts"),
        ({"_id": "1", "text": "x", "sources": [1]}, "'sources' is not a list of texts"),
        ({"_id": "1", "text": "x", "answerable": "no"}, "'answerable' is neither true nor false"),
        ({"_id": "1", "text": "x", "answerable": False, "answers": ["y"]}, "has 'answers' although it is not answerable"),
    ],
)
def test_questions_that_are_none_are_told_with_their_line(tmp_path, row, told):
    with pytest.raises(BadJudgements, match=rf"questions.jsonl:2: .*{told}"):
        questions(tmp_path, {"_id": "0", "text": "first"}, row)


def test_a_file_of_questions_that_was_cut(tmp_path):
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"_id": "1", "text": "x"}\n')[:-8])

    with pytest.raises(BadJudgements, match="cannot be read"):
        read_questions(path)
