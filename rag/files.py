"""Files that callers handed in, as they came: a folder for each tenant, in it one for each file.

The folder may be shared by several processes and replicas. A file's content never changes; what it is attached to does.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from rag.uploads import LOCK_SECONDS, UploadsBusy

_ID = re.compile(r"file-[0-9a-f]{24}")
_ABOUT, _CONTENT = "about.json", "content"


class FilesFull(ValueError):
    """A tenant has as many files as he may have."""


@dataclass(frozen=True)
class Attachment:
    """What became of a file in a collection; `failed` says why: a code and a message. `created` is in seconds since 1970."""

    created: float
    labels: tuple[str, ...] = ()
    attributes: Mapping[str, str | float | bool] = field(default_factory=dict)
    failed: tuple[Literal["unsupported_file", "invalid_file"], str] | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file; `roles` are those of its tenant that may see it, `size` is in bytes, `attached` is by collection."""

    id: str
    tenant: str
    name: str
    purpose: str
    size: int
    created: float
    roles: frozenset[str]
    attached: Mapping[str, Attachment] = field(default_factory=dict)


_FILE = TypeAdapter(StoredFile)


class Files:
    """All tenants' files: `most` of each, of `most_bytes` each. All methods block."""

    def __init__(self, folder: Path, *, most: int, most_bytes: int) -> None:
        self._folder, self._most, self.most_bytes = folder, most, most_bytes

    def put(self, tenant: str, name: str, purpose: str, roles: frozenset[str], data: bytes) -> StoredFile:
        """Keep a file; raises FilesFull and UploadsBusy."""
        file = StoredFile(f"file-{secrets.token_hex(12)}", tenant, name, purpose, len(data), time.time(), roles)
        folder = self._of(tenant)
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked(tenant):
            if sum(1 for _ in folder.glob("file-*")) >= self._most:
                raise FilesFull(f"there are {self._most} files, which is the limit; delete some first")
            building = folder / f".{file.id}"
            for left in folder.glob(".file-*"):  # of a process that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            building.mkdir()
            try:
                (building / _CONTENT).write_bytes(data)
                _write(building, file)
                building.rename(folder / file.id)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
        return file

    def all(self, tenant: str) -> list[StoredFile]:
        """Return a tenant's files, oldest first."""
        found = [self.get(tenant, path.name) for path in self._of(tenant).glob("file-*")]
        return sorted((file for file in found if file), key=lambda file: (file.created, file.id))

    def get(self, tenant: str, identity: str) -> StoredFile | None:
        """Return a tenant's file, None where he has none of that id."""
        if not _ID.fullmatch(identity):
            return None
        try:
            return _FILE.validate_json((self._of(tenant) / identity / _ABOUT).read_bytes())
        except FileNotFoundError:
            return None

    def content(self, file: StoredFile) -> bytes:
        """Return what is in a file; raises FileNotFoundError when it was deleted meanwhile."""
        return (self._of(file.tenant) / file.id / _CONTENT).read_bytes()

    def attach(self, file: StoredFile, collection: str, attachment: Attachment | None) -> bool:
        """Note what became of a file in a collection, None when it is not there any more; returns whether there is the file.

        Raises UploadsBusy.
        """
        with self._locked(file.tenant):
            now = self.get(file.tenant, file.id)
            if now is None:
                return False
            attached = {name: one for name, one in now.attached.items() if name != collection}
            if attachment is not None:
                attached[collection] = attachment
            _write(self._of(file.tenant) / file.id, replace(now, attached=attached))
        return True

    def delete(self, file: StoredFile) -> None:
        """Delete a file; raises UploadsBusy."""
        with self._locked(file.tenant):
            folder = self._of(file.tenant) / file.id
            gone = folder.with_name(f".{file.id}")
            if folder.is_dir():
                folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _of(self, tenant: str) -> Path:
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def _locked(self, tenant: str) -> Any:
        try:
            return FileLock(self._of(tenant) / "lock", timeout=LOCK_SECONDS).acquire()
        except Timeout as error:
            msg = f"other changes have taken over {LOCK_SECONDS} seconds; try again later"
            raise UploadsBusy(msg) from error


def _write(folder: Path, file: StoredFile) -> None:
    beside = folder / f"{_ABOUT}.new"
    told = {**asdict(file), "roles": sorted(file.roles)}
    beside.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
    beside.replace(folder / _ABOUT)
