"""A collection that a retriever from outside answers, in the place of an index."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar, cast

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from rag.access import Access
from rag.context import Context, Passage, fitted
from rag.plugins import BadPlugin, load_plugin

MOST_AT_ONCE = 32
"""Searches under way at once; one that never comes back keeps its place."""

Factory = Callable[..., BaseRetriever]
_Found = TypeVar("_Found")


class PluggedCollection:
    """A collection whose retriever `module:name` makes for each search: it is called with `access`, an Access.

    What the retriever finds and this caller may not see, by `tenant` and `labels` of its metadata, is left out too.
    """

    def __init__(
        self, path: str, *, top_k: int, min_score: float, max_context_characters: int, deadline_ms: int,
        order: Literal["best-first", "edges"] = "best-first", kept_share: float = 1.0,
    ) -> None:  # fmt: skip
        self._path, self._factory = path, retriever_factory(path)
        self._top_k, self._min_score, self._budget = top_k, min_score, max_context_characters
        self._order: Literal["best-first", "edges"] = order
        self._kept_share, self._deadline_ms = kept_share, deadline_ms
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)

    async def search(self, question: str, access: Access | None, top_k: int | None = None) -> list[Passage]:
        """Return the passages that the retriever finds, in its order, at most `top_k`; None as access is a tool's.

        Raises BadPlugin, also when the retriever does not answer in time: then it is left to itself.
        """
        try:
            async with asyncio.timeout(self._deadline_ms / 1000):
                found = await _elsewhere(partial(self._found, question, access), self._places)
        except TimeoutError as error:
            raise BadPlugin(f"retriever: {self._path!r} did not answer in {self._deadline_ms} ms (deadline_ms)") from error
        return [passage for passage in found if passage.score >= self._min_score][: top_k or self._top_k]

    def documents(self, access: Access | None) -> dict[str, dict[str, Any]]:  # noqa: ARG002  as a collection's
        """Return nothing: a retriever does not tell what there is."""
        return {}

    def version(self) -> str | None:
        """Return nothing: a retriever does not tell when its documents change."""
        return None

    def fit(self, passages: list[Passage], question: str = "") -> Context:
        """As a collection's."""
        return fitted(passages, question, self._budget, self._order, self._kept_share)

    def close(self) -> None:
        """Do nothing: what a retriever holds is its own."""

    def _found(self, question: str, access: Access | None) -> list[Passage]:
        try:
            found = make_retriever(self._path, self._factory, access).invoke(question)
        except BadPlugin:
            raise
        except (Exception, SystemExit) as error:
            raise BadPlugin(f"retriever: {self._path!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, list) or not all(isinstance(one, Document) for one in found):  # pyright: ignore[reportUnnecessaryIsInstance]  it is from outside
            raise BadPlugin(f"retriever: {self._path!r} must return a list of LangChain Documents")
        allowed = [document for document in found if document.page_content.strip() and _allowed(document, access)]
        return [self._passage(document, place) for place, document in enumerate(allowed, start=1)]

    def _passage(self, document: Document, place: int) -> Passage:
        told = document.metadata
        page, score = told.get("page"), told.get("score", told.get("relevance_score"))
        if score is None:
            score = 1 / place
        elif isinstance(score, bool) or not hasattr(score, "__float__") or not math.isfinite(score):
            raise BadPlugin(f"retriever: {self._path!r} gave a score that is no finite number: {score!r}")
        source = str(told.get("source") or document.id or self._path)
        heading = str(told.get("heading") or told.get("title") or "")
        return Passage(document.page_content, source, page if isinstance(page, int) else 0, heading, float(score))


def retriever_factory(path: str) -> Factory:
    """Return the callable `module:name`, which takes `access` and returns a BaseRetriever; raises BadPlugin."""
    found: Any = load_plugin("retriever", path)
    wanted = "name a function that takes access= and returns a retriever for it, or a class of one with a field `access`"
    if not callable(found) or isinstance(found, BaseRetriever):
        raise BadPlugin(f"retriever: {path!r} is a {type(found).__name__}; {wanted}")
    if isinstance(found, type) and issubclass(found, BaseRetriever):
        if "access" not in found.model_fields:
            raise BadPlugin(f"retriever: {path!r} has no field `access`, so it would find the same for everybody; {wanted}")
        return cast("Factory", found)
    try:
        inspect.signature(found).bind(access=None)
    except TypeError as error:
        raise BadPlugin(f"retriever: {path!r} cannot be called with access= alone ({error}); {wanted}") from error
    except ValueError:
        pass  # a builtin that does not tell what it takes
    return cast("Factory", found)


def make_retriever(path: str, factory: Factory, access: Access | None) -> BaseRetriever:
    """Return the retriever for a caller; raises BadPlugin."""
    try:
        made: Any = factory(access=access)
    except (Exception, SystemExit) as error:
        raise BadPlugin(f"retriever: {path!r} failed when it was called: {type(error).__name__}: {error}") from error
    if not isinstance(made, BaseRetriever):
        raise BadPlugin(f"retriever: {path!r} returns a {type(made).__name__}, and not a LangChain BaseRetriever")
    return made


def _allowed(document: Document, access: Access | None) -> bool:
    told = document.metadata
    labels = told.get("labels") or ()
    labelled = frozenset([labels] if isinstance(labels, str) else labels)
    return access is None or access.allows(str(told.get("tenant") or ""), labelled)


async def _elsewhere(function: Callable[[], _Found], places: threading.BoundedSemaphore) -> _Found:
    """Run a function in a thread of its own that nobody waits for when it hangs, at the end of the process neither.

    A pool would be used up by what hangs, and its threads are joined. Raises BadPlugin where no place is free.
    """
    if not places.acquire(blocking=False):
        raise BadPlugin(f"retriever: {MOST_AT_ONCE} searches of it are under way and have not come back")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Found] = loop.create_future()

    def settle(result: _Found | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]  there is one where no error is

    def run() -> None:
        result, failed = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  whoever waits is told
            failed = error
        finally:
            places.release()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="retriever", daemon=True).start()
    return await future
