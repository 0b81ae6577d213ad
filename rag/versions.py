"""The versions of a collection's index on a server, and the pointer that says which of them is searched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from langchain_core.embeddings import Embeddings

from rag.store import ChunkStore, StoreError


@dataclass(frozen=True)
class Version:
    """A finished version: `name` is the digest of what it was made of, `made` when it came here (YYYY-MM-DD HH:MM)."""

    name: str
    made: str
    chunks: int
    current: bool


class Versions(ABC):
    """One collection's versions. A version is built beside the others, registered when it is whole, and then never changed.

    Every method raises StoreError when the server is not there or refuses.
    """

    collection: str
    """The name on the server."""

    @abstractmethod
    def all(self) -> list[Version]:
        """Return the registered versions, oldest first."""

    @abstractmethod
    def card(self, version: str) -> dict[str, Any] | None:
        """Return how a registered version was made; None where there is no such version."""

    @abstractmethod
    def begin(self, version: str, dimensions: int) -> ChunkStore:
        """Return an empty store for a version; what a run that did not end left of it is removed."""

    @abstractmethod
    def register(self, version: str, card: dict[str, Any]) -> None:
        """Say that a version is whole."""

    @abstractmethod
    def open(self, version: str, embeddings: Embeddings) -> ChunkStore:
        """Return the store of a registered version."""

    @abstractmethod
    def current(self) -> str | None:
        """Return the version that is searched; None where none is."""

    @abstractmethod
    def switch(self, version: str) -> None:
        """Let searches that begin from now on go to this version, which must be registered."""

    @abstractmethod
    def remove(self, version: str) -> None:
        """Remove a version, whole or not."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""


def card_of(versions: Versions, version: str) -> dict[str, Any]:
    """Return how a version was made; raises StoreError when there is none."""
    card = versions.card(version)
    if card is None:
        known = ", ".join(one.name for one in versions.all()) or "none"
        raise StoreError(f"{versions.collection} has no version {version!r}; there is: {known}")
    return card
