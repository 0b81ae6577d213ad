"""Stores on servers, by URL."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from rag.store import StoreError
from rag.versions import Versions


def open_versions(url: str, collection: str) -> Versions:
    """Return a collection's versions on a server; the packages are imported here. Raises StoreError.

    `url` is postgresql://... as libpq reads it, or http(s)://... of Qdrant, where a password is the API key. `collection` is
    the name on the server.
    """
    scheme = urlsplit(url).scheme
    try:
        if scheme == "postgresql":
            from rag.postgres import PostgresVersions

            return PostgresVersions(url, collection)
        from rag.qdrant import QdrantVersions, connect
    except ImportError as error:
        raise StoreError(f"{error.name} is not installed; `pip install 'ekiben[stores]'`") from error
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return QdrantVersions(connect(f"{scheme}://{host}{parts.path}", unquote(parts.password or "") or None), collection)
