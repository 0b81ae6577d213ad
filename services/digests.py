"""Digests of folders in the model store: of every file, and of an index by its rows, for LanceDB gives its files random names.

Weights are read once: a digest is kept with the size and the time of its file, and taken again while both are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

ROWS = "lance"
"""The folder of an index that is judged by its rows."""
CARD = "model.yaml"
"""BentoML's own card of a model, which holds when it came into this store."""
_BLOCK = 2**22

Advance = Callable[[float, float], None]
"""Is told bytes that are read, and all."""


class DigestCache:
    """Digests of files that were read before, in a file; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[str | int]] = {}
        if path is not None and path.is_file():
            try:
                self._known = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError:  # half written; everything is read again
                self._known = {}

    def get(self, path: Path) -> str | None:
        """Return the digest of a file that has not changed since it was read, None for any other."""
        known = self._known.get(str(path))
        return str(known[0]) if known is not None and known[1:] == _stamp(path) else None

    def put(self, path: Path, digest: str) -> None:
        """Remember a digest."""
        self._known[str(path)] = [digest, *_stamp(path)]

    def save(self) -> None:
        """Write what is known, at once or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._known), encoding="utf-8")
        part.replace(self._path)


def _stamp(path: Path) -> list[str | int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def stored_files(folder: Path, *, rows: bool = True) -> list[Path]:
    """Return the files of a folder in the model store that are the same wherever it was made; `rows`: it may be an index."""
    left = {CARD, ROWS} if rows else {CARD}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] not in left]


def file_digests(
    folder: Path, files: Iterable[Path], advance: Advance = lambda _done, _total: None, cache: DigestCache | None = None
) -> dict[str, str]:
    """Return path below `folder` -> sha256 in hex."""
    listed = list(files)
    total, done = sum(path.stat().st_size for path in listed), 0
    digests: dict[str, str] = {}
    for path in listed:
        known = cache.get(path) if cache else None
        if known is None:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    done += len(block)
                    advance(done, total)
            known = digest.hexdigest()
            if cache:
                cache.put(path, known)
        else:
            done += path.stat().st_size
            advance(done, total)
        digests[path.relative_to(folder).as_posix()] = known
    return digests


def rows_digest(folder: Path) -> str | None:
    """Return a digest over the chunks of an index with their vectors, whatever their order; None for what is no index."""
    if not (folder / ROWS).is_dir():
        return None
    from rag.embedded import EmbeddedStore
    from rag.embedding import NoEmbeddings
    from rag.moving import content_digest

    return content_digest(EmbeddedStore(folder, NoEmbeddings()))
