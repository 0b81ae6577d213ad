"""Where the index of a collection is: in the model store, its version in bundle.lock, or on a server, which has a pointer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from services.bundle import PASSWORD, LoadedBundle
from services.lock import Lock, LockError
from services.plugins import importable
from services.settings import environment
from services.store import delete, is_stored, store, stored_path, stored_versions

if TYPE_CHECKING:
    from rag.collection import Collection, Searchable
    from rag.embedding import CallableEmbeddings, MultilingualE5
    from rag.versions import Version, Versions

EMBEDDED = "embedded"
Progress = Callable[[float, float], None]


def index_name(bundle: str, collection: str) -> str:
    """Return the name of a collection's index in the model store and on servers."""
    return f"{bundle}-index-{collection}"


@contextmanager
def on_server(loaded: LoadedBundle, name: str, url: str | None = None) -> Generator[Versions]:
    """Open a collection's versions at `url`, or where the bundle says; raises StoreError and LockError."""
    versions = _open(url or loaded.bundle.collections[name].store or "", index_name(loaded.bundle.name, name))
    try:
        yield versions
    finally:
        versions.close()


def _open(url: str, name: str) -> Versions:
    from rag.servers import open_versions

    return open_versions(PASSWORD.sub(lambda found: f":{quote(_variable(found[1]), safe='')}@", url), name)


def _variable(name: str) -> str:
    value = environment(name)
    if value is None:
        raise LockError(f"`store` needs the environment variable {name}; set it")
    return value


def open_collection(loaded: LoadedBundle, name: str, lock: Lock, embeddings: CallableEmbeddings | MultilingualE5) -> Searchable:
    """Open a collection for search; raises LockError, StoreError, UnusableIndex and BadPlugin."""
    entry = loaded.bundle.collections[name]
    if entry.retriever:
        from rag.plugged import PluggedCollection

        importable(loaded.root)
        return PluggedCollection(
            entry.retriever, top_k=entry.top_k, min_score=entry.min_score, order=entry.order,
            max_context_characters=entry.max_context_characters, deadline_ms=entry.deadline_ms,
            kept_share=entry.kept_share,
        )  # fmt: skip
    store = loaded.bundle.collections[name].store
    index = _open(store, index_name(loaded.bundle.name, name)) if store else stored_path(_tag(lock, name))
    return open_index(loaded, name, index, embeddings)


def open_index(
    loaded: LoadedBundle, name: str, index: Path | Versions, embeddings: CallableEmbeddings | MultilingualE5
) -> Collection:
    """Open an index for search with the settings of a collection; raises StoreError, UnusableIndex and BadPlugin."""
    from rag.collection import Collection
    from rag.ranking import Ranking

    importable(loaded.root)
    entry = loaded.bundle.collections[name]
    return Collection(
        index, embedder=loaded.bundle.embedder.name, embeddings=embeddings, top_k=entry.top_k,
        dense_weight=entry.dense_weight, min_score=entry.min_score, max_context_characters=entry.max_context_characters,
        ranking=Ranking(entry.rerank, entry.mmr, entry.order, entry.neighbours, entry.kept_share),
    )  # fmt: skip


def versions_of(loaded: LoadedBundle, name: str, lock: Lock) -> list[Version]:
    """Return the versions of a collection's index, oldest first."""
    from rag.index import read_index
    from rag.versions import Version

    if loaded.bundle.collections[name].store:
        with on_server(loaded, name) as versions:
            return versions.all()
    stored = index_name(loaded.bundle.name, name)
    return [
        Version(version, made, int(read_index(stored_path(tag))["chunks"]), tag == lock.indexes.get(name))
        for version, made in stored_versions(stored)
        if (tag := f"{stored}:{version}")
    ]


def switch(loaded: LoadedBundle, name: str, version: str, lock: Lock) -> Lock:
    """Let a collection be searched in another version; return the lock, changed where the index is in the model store.

    Raises UnusableIndex for a version of another embedding model, LockError and StoreError for one that is not there.
    """
    from rag.index import check_card, read_index
    from rag.versions import card_of

    embedder = loaded.bundle.embedder.name
    if loaded.bundle.collections[name].store:
        with on_server(loaded, name) as versions:
            check_card(card_of(versions, version), embedder)
            versions.switch(version)
        return lock
    tag = f"{index_name(loaded.bundle.name, name)}:{version}"
    check_card(read_index(stored_path(tag)), embedder)
    return lock.model_copy(update={"indexes": {**lock.indexes, name: tag}})


def remove(loaded: LoadedBundle, name: str, version: str, lock: Lock) -> None:
    """Remove a version that is not searched; raises LockError when it is."""
    from rag.versions import card_of

    told = f"{version} is searched; `ekiben rag switch {name}` to another first"
    if loaded.bundle.collections[name].store:
        with on_server(loaded, name) as versions:
            card_of(versions, version)
            if versions.current() == version:
                raise LockError(told)
            versions.remove(version)
        return
    tag = f"{index_name(loaded.bundle.name, name)}:{version}"
    if lock.indexes.get(name) == tag:
        raise LockError(told)
    stored_path(tag)
    delete(tag)


def publish_index(loaded: LoadedBundle, name: str, tag: str, progress: Progress, url: str | None = None) -> None:
    """Bring an index of the model store to a server unless it is there, and let it be searched."""
    from rag.moving import publish

    version = tag.rpartition(":")[2]
    with on_server(loaded, name, url) as versions:
        if versions.card(version) is None:
            publish(stored_path(tag), versions, version, progress)
        versions.switch(version)


def move(loaded: LoadedBundle, name: str, to: str, lock: Lock, progress: Progress) -> Lock:
    """Copy the version that is searched to `to`, a server's URL or "embedded", where it is searched from then on.

    Return the lock, changed when the index is now in the model store. What was copied from stays. Raises StoreError.
    """
    from rag.moving import fetch, publish
    from rag.versions import card_of

    stored = index_name(loaded.bundle.name, name)
    if not loaded.bundle.collections[name].store:
        if to == EMBEDDED:
            raise LockError(f"the index of {name!r} is in the model store already")
        publish_index(loaded, name, _tag(lock, name), progress, to)
        return lock
    with on_server(loaded, name) as versions:
        version = versions.current()
        if version is None:
            raise LockError(f"the server has no index of {name!r}; run `ekiben rag ingest {name}`")
        tag = f"{stored}:{version}"
        if to == EMBEDDED:
            if not is_stored(tag):
                card = card_of(versions, version)
                about: dict[str, object] = {"embedder": card["embedder"]}
                store(
                    tag, lambda folder: fetch(versions, version, folder, progress), labels={"made-by": "ekiben"}, metadata=about
                )
            return lock.model_copy(update={"indexes": {**lock.indexes, name: tag}})
        with TemporaryDirectory() as folder, on_server(loaded, name, to) as others:
            if others.card(version) is None:
                fetch(versions, version, Path(folder), progress)
                publish(Path(folder), others, version, progress)
            others.switch(version)
    return lock


def _tag(lock: Lock, name: str) -> str:
    if name not in lock.indexes:
        raise LockError(f"bundle.lock names no index of {name!r}; run `ekiben rag ingest {name}`")
    return lock.indexes[name]
