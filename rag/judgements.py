"""Judged queries in the form of BEIR: a corpus, queries, and which document answers which query; questions with their answers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("query-id", "corpus-id", "score", "split")


class BadJudgements(ValueError):
    """A file of judged queries that cannot be used; the message names the line."""


@dataclass(frozen=True)
class Judged:
    """Documents (id -> title, text), judged queries (id -> text), and judgements (query -> document -> grade above 0)."""

    documents: dict[str, tuple[str, str]]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Question:
    """A question for a whole route. `answers` are references, each right by itself; `sources` the documents that hold them."""

    id: str
    text: str
    answers: tuple[str, ...] = ()
    answerable: bool = True
    """Whether the documents answer it; where they do not, the right answer says so."""
    sources: tuple[str, ...] = ()


def read_judged(corpus: Path, queries: Path, qrels: Path, split: str | None = None) -> Judged:
    """Read the three files; queries without a document that answers them are left out.

    corpus and queries are JSONL, also .gz, with `_id`, `text` and (corpus) `title`; qrels is TSV: query-id, corpus-id, score
    and maybe split, in this order or as a header says. `split` keeps the rows of that split: of the qrels where they have the
    column, of the queries otherwise. Raises BadJudgements.
    """
    documents = {name: (str(row.get("title") or ""), row["text"]) for name, row in _rows(corpus)}
    asked = dict(_rows(queries))
    grades: dict[str, dict[str, int]] = {}
    for where, row in _judgements(qrels):
        query, document = row["query-id"], row["corpus-id"]
        if split is not None and split != row.get("split", asked.get(query, {}).get("split")):
            continue
        if query not in asked:
            raise BadJudgements(f"{where}: no query {query!r} in {queries.name}")
        if document not in documents:
            raise BadJudgements(f"{where}: no document {document!r} in {corpus.name}")
        try:
            grade = int(row["score"])
        except ValueError as error:
            raise BadJudgements(f"{where}: score {row['score']!r} is not a whole number") from error
        of_query = grades.setdefault(query, {})
        if document in of_query:
            raise BadJudgements(f"{where}: query {query!r} and document {document!r} are judged twice")
        of_query[document] = grade
    positive = {query: {d: g for d, g in of.items() if g > 0} for query, of in grades.items()}
    kept = {query: of for query, of in positive.items() if of}
    if not kept:
        raise BadJudgements(f"{qrels}: no query is judged" + (f" in the split {split!r}" if split else ""))
    return Judged(documents, {query: asked[query]["text"] for query in kept}, kept)


def read_questions(path: Path) -> list[Question]:
    """Read questions, JSONL, also .gz: `_id`, `text`, and where known `answers`, `answerable` and `sources`.

    Other fields are left alone, so BEIR's queries with `answers` are questions. Raises BadJudgements.
    """
    return [_question(where, name, row) for where, name, row in _placed_rows(path)]


def _question(where: str, name: str, row: dict[str, Any]) -> Question:
    if not row["text"].strip():
        raise BadJudgements(f"{where}: 'text' is empty")
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("answers", "sources"):
        told = row.get(key, [])
        if not isinstance(told, list) or not all(isinstance(one, str) and one.strip() for one in told):
            raise BadJudgements(f"{where}: {key!r} is not a list of texts")
        lists[key] = tuple(told)
    answerable = row.get("answerable", True)
    if not isinstance(answerable, bool):
        raise BadJudgements(f"{where}: 'answerable' is neither true nor false")
    if not answerable and (key := next((key for key, told in lists.items() if told), None)):
        raise BadJudgements(f"{where}: has {key!r} although it is not answerable")
    return Question(name, row["text"], lists["answers"], answerable, lists["sources"])


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line that is not blank stands, and the line."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadJudgements(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and row of each line of JSONL."""
    return ((name, row) for _, name, row in _placed_rows(path))


def _placed_rows(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield where it stands, id and row of each line of JSONL."""
    seen: set[str] = set()
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadJudgements(f"{where}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadJudgements(f"{where}: not an object")
        if missing := [key for key in ("_id", "text") if key not in row]:
            raise BadJudgements(f"{where}: has no {missing[0]!r}")
        if not isinstance(row["text"], str):
            raise BadJudgements(f"{where}: 'text' is not a string")
        name = str(row["_id"])
        if name in seen:
            raise BadJudgements(f"{where}: the id {name!r} stands twice")
        seen.add(name)
        yield where, name, row
    if not seen:
        raise BadJudgements(f"{path}: empty")


def _judgements(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a TSV, with or without a header."""
    columns: list[str] | None = None
    for where, line in _lines(path):
        cells = line.split("\t")
        if columns is None:
            header = COLUMNS[0] in cells or COLUMNS[1] in cells
            columns = cells if header else list(COLUMNS[: len(cells)])
            if missing := [name for name in COLUMNS[:3] if name not in columns]:
                raise BadJudgements(f"{where}: has no column {missing[0]!r}; qrels are query-id, corpus-id, score, by tabs")
            if header:
                continue
        if len(cells) < len(columns):
            raise BadJudgements(f"{where}: {len(cells)} columns instead of {len(columns)}")
        yield where, dict(zip(columns, cells, strict=False))
    if columns is None:
        raise BadJudgements(f"{path}: empty")
