"""A served route asked every question of a file, over the API as any client would, and what its answers are worth.

Passages are asked for by `POST /v1/rag/search`, because the sources of an answer hold their beginnings only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from rag.answers import Row
from rag.judgements import Question
from services.grading import Shown, grade, language
from services.results import Kept

ATTEMPTS = 3
_BUSY = frozenset({429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds between two attempts
_ANSWER_SECONDS = 600.0
_BEGINNING = (
    160  # characters by which an excerpt is known again; near its cut a guard may hide what it does not hide in the whole
)
_VERSIONS = ("route", "model", "adapter", "prompt", "policy", "index")


class AnsweringError(Exception):
    """The route cannot be asked; the message says why."""


class Refusal(Exception):
    """What the server said instead of an answer: HTTP status, OpenAI's code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status, self.code = status, code


class Box:
    """A client of a served box, or of another server of OpenAI's API; use as an async context manager.

    `url` with or without /v1; `headers` go with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=10)
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def check(self, model: str) -> None:
        """Raise AnsweringError unless the server is there and has this model."""
        try:
            listed = await self._request("GET", "/v1/models")
            names = sorted(str(one["id"]) for one in listed["data"])
        except Refusal as error:
            raise AnsweringError(f"{self.url} refuses to list its models: {error}") from error
        except (LookupError, TypeError) as error:
            raise AnsweringError(f"{self.url} is no server of OpenAI's API: /v1/models lists no models") from error
        if model not in names:
            raise AnsweringError(f"{self.url} has no model {model!r}; there is: {', '.join(names) or 'none'}")

    async def answer(self, model: str, question: str) -> tuple[dict[str, Any], float]:
        """Return the answer to one question and the seconds it took; raises Refusal and AnsweringError."""
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
        return await self._patiently("/v1/chat/completions", body)

    async def passages(self, model: str, question: str) -> list[dict[str, Any]]:
        """Return the passages that the route finds, whole; none where the server has no such search. Raises AnsweringError."""
        try:
            found, _ = await self._patiently("/v1/rag/search", {"model": model, "query": question})
        except Refusal:
            return []
        return found.get("data", [])

    async def _patiently(self, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        for attempt in range(1, ATTEMPTS + 1):
            started = time.perf_counter()
            try:
                return await self._request("POST", path, body), time.perf_counter() - started
            except _Busy as busy:
                if attempt == ATTEMPTS:
                    raise busy.refusal from None
                await asyncio.sleep(min(float(attempt) if busy.wait is None else busy.wait, _LONGEST_WAIT))
        raise AssertionError

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self._session is None:
            msg = "Box is used outside of its context"
            raise RuntimeError(msg)
        try:
            async with self._session.request(method, f"{self.url}{path}", json=body) as response:
                told = await _json(response)
                if response.ok:
                    return told
                error = told.get("error")
                error = error if isinstance(error, dict) else {}
                refusal = Refusal(response.status, str(error.get("code") or ""), str(error.get("message") or response.reason))
                if method == "POST" and response.status in _BUSY:
                    raise _Busy(refusal, _seconds(response.headers.get("retry-after")))
                raise refusal
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AnsweringError(f"{self.url} does not answer ({error or 'too slow'}); is the box served there?") from error
        except ValueError as error:
            raise AnsweringError(f"{self.url} is no server of OpenAI's API: {path} gives no JSON") from error


class _Busy(Exception):
    def __init__(self, refusal: Refusal, wait: float | None) -> None:
        super().__init__(str(refusal))
        self.refusal, self.wait = refusal, wait


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        told = await response.json(content_type=None)
    except ValueError:
        if response.ok:
            raise
        told = {}
    return told if isinstance(told, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


@dataclass
class Asked:
    """What became of a file's questions: rows in the file's order, and why others have none."""

    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


async def ask_all(
    box: Box, model: str, questions: Sequence[Question], *, concurrency: int, kept: Kept | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Asked:  # fmt: skip
    """Ask every question that `kept` has no row of, `concurrency` at a time, and grade the answers.

    A question that the server fails on is told in `failed`, and the others go on. Raises AnsweringError when the server is
    lost or turns everything down; `kept` then has all that was answered.
    """
    rows = dict(kept.rows) if kept else {}
    failed: dict[str, str] = {}
    left = iter([question for question in questions if question.id not in rows])
    await box.check(model)

    async def work() -> None:
        for question in left:
            try:
                row, texts = await _ask(box, model, question)
            except Refusal as refusal:
                if refusal.status in {401, 403, 404}:
                    raise AnsweringError(f"{box.url} refuses {model!r}: {refusal}") from refusal
                failed[question.id] = str(refusal)
            else:
                rows[question.id] = row
                if kept:
                    kept.add(row, texts)
            progress(len(rows) + len(failed), len(questions))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as group:
        lost = group.subgroup(AnsweringError)
        if lost is None:
            raise
        raise lost.exceptions[0] from group
    return Asked([rows[question.id] for question in questions if question.id in rows], failed)


async def _ask(box: Box, model: str, question: Question) -> tuple[Row, dict[str, Any]]:
    """Return the row of one question, and the texts it was made of."""
    try:
        body, seconds = await box.answer(model, question.text)
    except Refusal as refusal:
        if refusal.code != "content_filter":
            raise
        shown = Shown("", refused=True)
        return Row(question.id, language(question), grade(question, shown), 0.0, 0, 0, refused=True), _texts(question, shown)
    try:
        choice = body["choices"][0]
        said = str(choice["message"].get("content") or "")
    except (LookupError, TypeError, AttributeError) as error:
        raise AnsweringError(f"{box.url} is no server of OpenAI's API: an answer has no message") from error
    about = body.get("ekiben") or {}
    sources: list[dict[str, Any]] | None = about.get("sources")
    passages = None if sources is None else _whole(sources, await box.passages(model, question.text) if sources else [])
    shown = Shown(
        said,
        passages=None if passages is None else tuple(text for text, _ in passages),
        sources=tuple(str(source["source"]) for source in sources or ()),
        nothing_found=bool(about.get("abstained")), refused=choice.get("finish_reason") == "content_filter",
    )  # fmt: skip
    usage = body.get("usage") or {}
    row = Row(
        question.id, language(question), await asyncio.to_thread(grade, question, shown), round(1000 * seconds, 1),
        int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), refused=shown.refused,
        whole_passages=all(whole for _, whole in passages or ()),
        versions={name: str(about[name]) for name in _VERSIONS if about.get(name)},
    )  # fmt: skip
    return row, _texts(question, shown)


def _whole(sources: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Return the text of each source's passage, behind its headings as the prompt has it, and whether it is the whole one."""
    texts: list[tuple[str, bool]] = []
    for source in sources:
        place, excerpt = [source.get(key) for key in ("source", "page", "heading")], str(source.get("excerpt") or "")
        whole = next(
            (
                str(one["text"])
                for one in found
                if [one.get(key) for key in ("source", "page", "heading")] == place
                and str(one["text"]).startswith(excerpt[:_BEGINNING])
            ),
            None,
        )
        text = excerpt if whole is None else whole
        texts.append((f"{source['heading']}: {text}" if source.get("heading") else text, whole is not None))
    return texts


def _texts(question: Question, shown: Shown) -> dict[str, Any]:
    return {"question": question.text, "answers": list(question.answers), "answer": shown.text, "sources": list(shown.sources)}
