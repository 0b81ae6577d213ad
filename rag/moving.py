"""Copy an index from one store to another: no text is embedded again, and what arrived is compared with what was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from rag.index import read_index, write_card
from rag.store import ChunkStore, StoreError, completed
from rag.versions import Versions, card_of

Progress = Callable[[int, int], None]
"""Is told chunks that are copied, and all."""


def publish(folder: Path, versions: Versions, version: str, progress: Progress) -> None:
    """Copy an index in a folder to a server as `version`; it is registered when it is there whole. Raises StoreError."""
    source = EmbeddedStore(folder, NoEmbeddings())
    _copy(source, lambda dimensions: versions.begin(version, dimensions), progress)
    versions.register(version, read_index(folder))


def fetch(versions: Versions, version: str, folder: Path, progress: Progress) -> None:
    """Copy a version from a server to an index in an empty folder. Raises StoreError."""
    _copy(versions.open(version, NoEmbeddings()), lambda _: EmbeddedStore(folder, NoEmbeddings()), progress)
    write_card(folder, card_of(versions, version))


def content_digest(store: ChunkStore) -> str:
    """Return a digest over all chunks with their vectors, whatever their order."""
    chunks: list[bytes] = []
    for documents, vectors in store.batches():
        for document, vector in zip(documents, vectors, strict=True):
            told = json.dumps([document.id, document.page_content, completed(document)], sort_keys=True)
            chunks.append(hashlib.sha256(told.encode("utf-8", "replace") + vector.astype("<f4").tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(chunks))).hexdigest()


def _copy(source: ChunkStore, make: Callable[[int], ChunkStore], progress: Progress) -> None:
    total, done = source.count(), 0
    target: ChunkStore | None = None
    for documents, vectors in source.batches():
        target = target or make(vectors.shape[1])
        target.put(documents, vectors)
        done += len(documents)
        progress(done, total)
    if target is None:
        raise StoreError("the index is empty; there is nothing to copy")
    target.finish()
    if target.count() != total or content_digest(target) != content_digest(source):
        raise StoreError("what arrived is not what was sent, and is not used; does another process write there? Run it again")
