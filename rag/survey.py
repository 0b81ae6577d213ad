"""What a collection is made of now: each document with the digest of its content, and what is refused before it is read."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from yarl import URL

from rag.decoding import Unreadable
from rag.loaders import loaded_rows
from rag.loading import READERS, ROW_KINDS
from rag.plugins import BadPlugin
from rag.web import Page, Web

LINES = ".jsonl"
MAX_FILE_BYTES = 50 * 2**20  # of one document
MAX_LINES_BYTES = 2 * 2**30  # of a JSONL file, which holds many


_KEYS = ("text", "id", "title", "source", "date", "tenant", "labels", "language", "kind")


class Changed(RuntimeError):
    """A document is not any more what the survey saw."""


@dataclass(frozen=True)
class Owner:
    """Whose a document is: a tenant's ("" for everybody's), and within it for whoever has one of the labels, or for all."""

    tenant: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """A document that has not been read yet: `name` is its source in answers, `kind` the suffix that tells its reader.

    `content` is the sha256 of its bytes. `date` is YYYY-MM-DD; `dated` says that it was given and not only the file's.
    """

    name: str
    kind: str
    content: str
    read: Callable[[], bytes]
    title: str = ""
    date: str = ""
    dated: bool = False
    language: str = ""
    owner: Owner = Owner()
    declared: str = ""

    @property
    def digest(self) -> str:
        """32 hex digits over content and what was given with it; a file that was only touched keeps it."""
        given = [self.content, self.kind, self.title, self.date if self.dated else "", self.language, self.owner, self.declared]
        return hashlib.sha256(json.dumps(given, default=asdict).encode()).hexdigest()[:32]


@dataclass
class Survey:
    """The documents of a collection, in order of their sources, and why others were refused."""

    items: list[Item] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a collection's documents are: `sources` are paths (relative to `root`) of folders and files, and URLs.

    `labels` are the access labels of documents that bring none, `tenant` ("" for everybody's) whose they are where they do
    not tell; `allow_hosts` is explained at `Web`. `loader` names a plug-in, `module:name`; its documents are the collection's
    too.
    """

    root: Path
    sources: Sequence[str]
    labels: Sequence[str] = ()
    tenant: str = ""
    allow_hosts: Sequence[str] = ()
    loader: str = ""

    def survey(self) -> Survey:
        """Look at everything; what cannot be had is refused with a reason, and the others go on.

        The content of files is read to know its digest, and nothing of it is kept; what a loader gave is. Raises BadPlugin.
        """
        found = Survey()
        first: dict[tuple[str, Owner], str] = {}
        names: set[str] = set()
        for item in self._items(found.refused):
            again = item.name
            while again in names or again in found.refused:
                again += " (again)"
            if (item.content, item.owner) in first:
                found.refused[again] = f"the same content as {first[item.content, item.owner]}"
            elif item.name in names:
                found.refused[again] = "another document has this name; give each an id or a source of its own"
            else:
                names.add(item.name)
                first[item.content, item.owner] = item.name
                found.items.append(item)
        found.items.sort(key=lambda item: item.name)
        return found

    def _items(self, refused: dict[str, str]) -> Iterator[Item]:
        owner = Owner(self.tenant, tuple(sorted(set(self.labels))))
        for source in self.sources:
            if source.startswith(("http://", "https://")):
                yield from self._fetched(source, owner, refused)
                continue
            path = self.root / source
            prefix = "" if len(self.sources) == 1 else f"{Path(source).as_posix()}/"
            if path.is_dir():
                for file in files_of(path, refused, prefix):
                    yield from _of_file(file, prefix + file.relative_to(path).as_posix(), owner, refused)
            elif path.is_file():
                yield from _of_file(path, prefix.rstrip("/") or path.name, owner, refused)
            else:
                refused[source] = "no such file or folder"
        if self.loader:
            yield from _of_loader(self.loader, owner, refused)

    def _fetched(self, url: str, owner: Owner, refused: dict[str, str]) -> Iterator[Item]:
        try:
            page = Web(self.allow_hosts, MAX_FILE_BYTES).fetch(url)
            yield from _of_page(str(URL(url).with_fragment(None)), page, owner, refused)
        except Unreadable as error:
            refused[url] = str(error)


def files_of(folder: Path, refused: dict[str, str], prefix: str = "") -> Iterator[Path]:
    """Yield the files below a folder in order; hidden ones, and links to folders or out of the folder, are refused."""
    root = folder.resolve()

    def walk(here: Path) -> Iterator[Path]:
        for path in sorted(here.iterdir()):
            name = prefix + path.relative_to(folder).as_posix()
            if path.name.startswith("."):
                refused[name] = "hidden (its name begins with a dot)"
            elif path.is_symlink() and (reason := _bad_link(path, root)):
                refused[name] = reason
            elif path.is_dir():
                yield from walk(path)
            elif path.is_file():
                yield path
            else:
                refused[name] = "neither a file nor a folder"

    yield from walk(folder)


def _bad_link(path: Path, root: Path) -> str | None:
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        return "a link to nothing"
    except (OSError, RuntimeError):
        return "a link that leads back to itself"
    if not target.is_relative_to(root):
        return "a link that leads out of the folder; copy the file, or name it as a source"
    return "a link to a folder; links to folders are not followed" if target.is_dir() else None


def _of_file(path: Path, name: str, owner: Owner, refused: dict[str, str]) -> Iterator[Item]:
    kind = path.suffix.lower()
    try:
        told = path.stat()
        most = MAX_LINES_BYTES if kind == LINES else MAX_FILE_BYTES
        if kind not in {*READERS, LINES}:
            refused[name] = f"unknown kind {kind or path.name!r}; readable are {', '.join([*READERS, LINES])}"
        elif told.st_size > most:
            refused[name] = f"{told.st_size / 2**20:.0f} MiB; over {most // 2**20} MiB a file is to be split"
        elif kind == LINES:
            with path.open("rb") as file:
                yield from _of_lines(file, name, owner, refused, functools.partial(_line_of, path))
        else:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            if told.st_size == 0:
                refused[name] = "empty"
            else:
                date = f"{datetime.fromtimestamp(told.st_mtime, UTC):%Y-%m-%d}"
                yield Item(name, kind, content, functools.partial(_unchanged, path.read_bytes, content), date=date, owner=owner)
    except OSError as error:
        refused[name] = f"cannot be read: {error.strerror or error}"


def _of_page(name: str, page: Page, owner: Owner, refused: dict[str, str]) -> Iterator[Item]:
    if page.kind == LINES:
        yield from _of_lines(io.BytesIO(page.data), name, owner, refused, lambda start, length: page.data[start : start + length])
    elif page.kind not in READERS:
        refused[name] = f"unknown kind {page.kind!r}; readable are {', '.join([*READERS, LINES])}"
    elif not page.data.strip():
        refused[name] = "empty"
    else:
        content = hashlib.sha256(page.data).hexdigest()
        yield Item(name, page.kind, content, lambda: page.data, owner=owner, declared=page.declared)


def _of_lines(
    file: BinaryIO, name: str, owner: Owner, refused: dict[str, str], line_at: Callable[[int, int], bytes]
) -> Iterator[Item]:
    number, start = 0, 0
    while line := file.readline(MAX_FILE_BYTES + 1):
        number += 1
        try:
            if len(line) > MAX_FILE_BYTES:
                refused[f"{name}:{number}"] = f"a line over {MAX_FILE_BYTES // 2**20} MiB; the rest of the file is not read"
                return
            if line.strip():
                yield _of_line(line, name, owner, functools.partial(line_at, start, len(line)))
        except Unreadable as error:
            refused[f"{name}:{number}"] = str(error)
        start += len(line)
    if not number:
        refused[name] = "empty"


def _of_loader(loader: str, owner: Owner, refused: dict[str, str]) -> Iterator[Item]:
    size = 0
    for number, row in enumerate(loaded_rows(loader), start=1):
        size += len(row["text"])
        if size > MAX_LINES_BYTES:
            raise BadPlugin(f"loader: {loader!r} gave over {MAX_LINES_BYTES // 2**30} GiB of text; does it end?")
        try:
            yield _of_row(_checked(row), loader, owner, functools.partial(str, row["text"]))
        except Unreadable as error:
            refused[f"{row.get('source') or loader}:{number}"] = str(error)


def _of_line(line: bytes, name: str, owner: Owner, read: Callable[[], bytes]) -> Item:
    return _of_row(_row(line), name, owner, lambda: _row(read())["text"])


def _of_row(row: dict[str, Any], name: str, owner: Owner, read: Callable[[], str]) -> Item:
    text = row["text"]
    content = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    own = Owner(row.get("tenant", owner.tenant), tuple(sorted(set(row["labels"]))) if "labels" in row else owner.labels)
    # A number would change with every line before it.
    identity = str(row.get("id") or hashlib.sha256("\0".join([content, own.tenant, *own.labels]).encode()).hexdigest()[:16])
    named = str(row["source"]) + (f"#{identity}" if "id" in row else "") if "source" in row else f"{name}#{identity}"
    date = str(row.get("date", ""))[:10]
    return Item(
        named, row.get("kind", ".txt"), content, lambda: _unchanged(lambda: read().encode("utf-8", "replace"), content),
        title=str(row.get("title", "")), date=date, dated=bool(date), language=str(row.get("language", "")), owner=own,
    )  # fmt: skip


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Unreadable(f"no JSON in UTF-8: {error}") from error
    return _checked(row)


def _checked(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise Unreadable('not an object with a "text"')
    if len(row["text"]) > MAX_FILE_BYTES:
        raise Unreadable(f"a text over {MAX_FILE_BYTES // 2**20} MiB; split it")
    if unknown := sorted(set(row) - set(_KEYS)):
        raise Unreadable(f"unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    if row.get("kind", ".txt") not in ROW_KINDS:
        raise Unreadable(f"unknown kind {row['kind']!r}; known are {', '.join(ROW_KINDS)}")
    labels = row.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Unreadable("labels are a list of strings")
    if not isinstance(row.get("tenant", ""), str):
        raise Unreadable("tenant is a string")
    try:
        datetime.fromisoformat(str(row.get("date", "2000-01-01")))
    except ValueError as error:
        raise Unreadable(f"date {row['date']!r} is not of the form YYYY-MM-DD") from error
    return row


def _line_of(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _unchanged(read: Callable[[], bytes], content: str) -> bytes:
    data = read()
    if hashlib.sha256(data).hexdigest() != content:
        raise Changed
    return data
