"""Documents that callers add and remove while a box serves: a file for each, and an index of them that is replaced whole.

The folder may be shared by several processes and replicas: changes are made one after the other under a lock, and a reader
sees the index before a change or after it. What a change costs grows with all that is there, so this is for thousands of
documents; what is known beforehand belongs into the collection itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from langchain_core.embeddings import Embeddings

from rag.index import Check, Recipe, build_index, index_digest, read_index
from rag.survey import Place

LOCK_SECONDS = 60
_ROWS, _CURRENT = "documents", "current"
_EMPTY = "nothing of it may be in the index, by the collection's policy"


class UploadsBusy(RuntimeError):
    """Other changes take too long."""


@dataclass(frozen=True)
class Upload:
    """A document of a caller's. `id` is his tenant's own; `labels` say who of the tenant may find it, none that all may."""

    id: str
    tenant: str
    text: str
    title: str = ""
    labels: tuple[str, ...] = ()
    language: str = ""
    date: str = ""
    kind: str = ""
    """How its text is read: a suffix in ROW_KINDS, nothing for plain text."""

    @property
    def source(self) -> str:
        """Its source in answers."""
        return f"uploads/{self.tenant}#{self.id}"

    def row(self) -> str:
        """Return it as a line of a collection."""
        told = {"source": f"uploads/{self.tenant}", "id": self.id, "tenant": self.tenant, "labels": list(self.labels)}
        rest = {"title": self.title, "language": self.language, "date": self.date, "kind": self.kind}
        given = {name: value for name, value in rest.items() if value}
        return json.dumps({**told, **given, "text": self.text}, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, row: dict[str, Any]) -> Upload:
        """Read it back."""
        given = {name: row[name] for name in ("title", "language", "date", "kind") if name in row}
        return cls(row["id"], row["tenant"], row["text"], labels=tuple(row["labels"]), **given)


@dataclass
class Change:
    """What became of documents that were put: by id, and why those that are not in the index are not."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Uploads:
    """A collection's uploads in a folder, `most` of them at most; all methods block."""

    def __init__(self, folder: Path, recipe: Recipe, embeddings: Embeddings, check: Check, most: int) -> None:
        self._folder, self._recipe, self._embeddings, self._check, self._most = folder, recipe, embeddings, check, most
        (folder / _ROWS).mkdir(parents=True, exist_ok=True)

    def put(self, uploads: Sequence[Upload]) -> Change:
        """Add documents, each in the place of what its tenant has under its id. All is as before when this raises.

        Raises UploadsBusy, UnusableIndex, and what the check and the embedding model raise.
        """
        change, earlier = Change(), {}
        with self._locked():
            known = {(upload.tenant, upload.id): upload for upload in self.all()}
            texts = {(one.tenant, one.labels, one.text): one.id for one in known.values()}
            for upload in uploads:
                same = texts.get((upload.tenant, upload.labels, upload.text), upload.id)
                before = known.get((upload.tenant, upload.id))
                if same != upload.id:
                    change.refused[upload.id] = f"the same content as {same}"
                elif before is None and len(known) >= self._most:
                    change.refused[upload.id] = f"there are {self._most} documents, which is the limit; delete some first"
                elif before == upload:
                    change.unchanged.append(upload.id)
                else:
                    (change.added if before is None else change.replaced).append(upload.id)
                    if before is not None:
                        texts.pop((before.tenant, before.labels, before.text), None)
                    known[upload.tenant, upload.id] = upload
                    texts[upload.tenant, upload.labels, upload.text] = upload.id
                    path = self._path(upload.tenant, upload.id)
                    earlier[path] = path.read_bytes() if path.exists() else None
                    _replace(path, upload.row().encode())
            self._settle(uploads, earlier, change)
        gone = set(change.refused)
        change.added = [one for one in change.added if one not in gone]
        change.replaced = [one for one in change.replaced if one not in gone]
        return change

    def _settle(self, uploads: Sequence[Upload], earlier: dict[Path, bytes | None], change: Change) -> None:
        """Rebuild; what is refused then gives way to what was there before, which is in the index again."""
        left = {self._path(upload.tenant, upload.id): upload for upload in uploads}
        left = {path: upload for path, upload in left.items() if path in earlier}
        while refused := self._rebuild(earlier):
            back = [path for path, upload in left.items() if upload.source in refused]
            if not back:
                return
            for path in back:
                upload = left.pop(path)
                change.refused[upload.id] = refused[upload.source]
                _put_back(path, earlier[path])

    def remove(self, tenant: str, identity: str) -> bool:
        """Remove a tenant's document; returns whether there was one. Raises UploadsBusy."""
        with self._locked():
            path = self._path(tenant, identity)
            if not path.exists():
                return False
            content = path.read_bytes()
            path.unlink()
            self._rebuild({path: content})
        return True

    def remake(self) -> None:
        """Make the index as this version makes it, from the documents; nothing where it is so. Raises UploadsBusy."""
        with self._locked():
            self._build()

    def all(self) -> list[Upload]:
        """Return every document, in order of tenants and ids; without the lock, without what is removed meanwhile."""
        rows: list[dict[str, Any]] = []
        for path in (self._folder / _ROWS).glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                rows.append(json.loads(path.read_bytes()))
        return sorted((Upload.of(row) for row in rows), key=lambda upload: (upload.tenant, upload.id))

    def has(self, tenant: str, identity: str) -> bool:
        """Whether a tenant has a document of that id."""
        return self._path(tenant, identity).is_file()

    def index(self) -> Path | None:
        """Return the folder of the index as it is now, None where there is nothing."""
        try:
            name = (self._folder / _CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return self._folder / name if name else None

    def _path(self, tenant: str, identity: str) -> Path:
        name = hashlib.sha256(f"{tenant}\0{identity}".encode()).hexdigest()[:32]
        return self._folder / _ROWS / f"{name}.jsonl"

    def _locked(self) -> Any:
        lock = FileLock(self._folder / "lock", timeout=LOCK_SECONDS)
        try:
            return lock.acquire()
        except Timeout as error:
            msg = f"other changes have taken over {LOCK_SECONDS} seconds; try again later"
            raise UploadsBusy(msg) from error

    def _rebuild(self, earlier: dict[Path, bytes | None]) -> dict[str, str]:
        """Build the index beside the one there is, and switch; returns what was refused. Puts `earlier` back when it fails."""
        try:
            return self._build()
        except BaseException:
            for path, content in earlier.items():
                _put_back(path, content)
            raise

    def _build(self) -> dict[str, str]:
        before = self.index()
        survey = Place(self._folder, (_ROWS,)).survey()
        if not survey.items:
            _replace(self._folder / _CURRENT, b"")
            return survey.refused
        name = f"index-{index_digest(survey, self._recipe)}"
        if before is not None and before.name == name:
            return survey.refused
        building = self._folder / "building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        report = build_index(survey, building, self._recipe, embeddings=self._embeddings, earlier=before, check=self._check)
        sources = read_index(building)["sources"]
        empty = {name: _EMPTY for name, told in sources.items() if told.get("chunks") == 0}
        shutil.rmtree(self._folder / name, ignore_errors=True)
        building.rename(self._folder / name)
        _replace(self._folder / _CURRENT, name.encode())
        # Readers may still open the one before.
        for old in self._folder.glob("index-*"):
            if old.name != name and old != before:
                shutil.rmtree(old, ignore_errors=True)
        return report.refused | empty


def _put_back(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True) if content is None else _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)
