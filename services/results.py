"""Rows of answers kept in a file: written while a route is asked, gone on with after a kill, compared with later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from pydantic import TypeAdapter

from rag.answers import Row
from rag.judgements import Question


class BadResult(ValueError):
    """A file of results that cannot be used; the message says what to do."""


class Kept:
    """A file of rows and their texts, JSONL, a line for each answer as soon as it is there. Use as a context manager.

    Its first line says of which model and questions it is: another run's file is not gone on with.
    """

    def __init__(self, path: Path, model: str, questions: Iterable[Question], *, resume: bool) -> None:
        digest = hashlib.sha256(json.dumps([asdict(question) for question in questions]).encode()).hexdigest()
        self._path, self._head = path, {"model": model, "questions": digest}
        self._file: IO[str] | None = None
        self.rows: dict[str, Row] = {}
        if path.exists() and not resume:
            raise BadResult(f"{path} is there already: name another file, or go on with it by --resume")
        if path.exists():
            head, self.rows = _kept_rows(path)
            if head != self._head:
                raise BadResult(f"{path} is of another model or other questions; name another file")

    def __enter__(self) -> Self:
        new = not self._path.exists()
        if not new:
            _drop_half_line(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadResult(f"{self._path} cannot be written: {error.strerror}") from error
        if new:
            self._write(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row, texts: Mapping[str, Any]) -> None:
        """Keep one answer."""
        self._write({"row": asdict(row), **texts})

    def _write(self, told: Mapping[str, Any]) -> None:
        if self._file is None:
            msg = "Kept is used outside of its context"
            raise RuntimeError(msg)
        self._file.write(json.dumps(told, ensure_ascii=False) + "\n")
        self._file.flush()


def read_result(path: Path) -> list[Row]:
    """Read the rows of an earlier run: what --json printed, or the file of --save. Raises BadResult."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadResult(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        return list(_kept_rows(path)[1].values())
    try:
        return [_row(one) for one in told["rows"]]
    except (ValueError, TypeError, LookupError) as error:
        raise BadResult(f"{path} is no result of `ekiben rag answers`") from error


def _kept_rows(path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """Return the head and the rows of a kept file; a last line that a kill cut in two is left out."""
    rows: dict[str, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        head = json.loads(lines[0])
        for line in lines[1:]:
            row = _row(json.loads(line)["row"])
            rows[row.id] = row
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise BadResult(f"{path} is no result of `ekiben rag answers`") from error
    return head, rows


def _row(told: object) -> Row:
    return TypeAdapter(Row).validate_python(told)


def _drop_half_line(path: Path) -> None:
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
