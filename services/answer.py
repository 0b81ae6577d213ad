"""What becomes of the engine's answer before the caller sees it: guarded, cited, and named by the versions that made it."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guards.output import OutputGuard

if TYPE_CHECKING:
    from guards.guard import Guard
    from rag.context import Context
    from services.routing import Route

CONTENT_FILTER = "content_filter"
TEXT_FIELDS = ("reasoning", "reasoning_content", "content", "refusal", "text")


class AnswerGuard:
    """The answer to one request; use either `whole` once, or `event` for each event of a stream. Both raise GuardFailure.

    A choice that a guard blocks ends there with `content_filter`; the other choices go on.
    """

    def __init__(self, route: Route, guard: Guard, context: Context | None, choices: int = 1) -> None:
        self._route = route
        self._guard = guard
        self._context = context
        self._choices = choices
        self._texts: dict[int, dict[tuple[str, int], OutputGuard]] = defaultdict(dict)
        self._grounded: list[dict[str, Any]] = []
        self._cited: set[int] = set()
        self._ended: set[int] = set()
        self._announced = False

    @property
    def over(self) -> bool:
        """Whether guards have ended every choice: what the engine still says is for nobody."""
        return len(self._ended) >= self._choices

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a non-streamed answer."""
        shown = dict(body) if not self._guard.hides_output else _only(body, _BODY)
        shown["choices"] = [self._choice(choice) for choice in body.get("choices", [])]
        shown["model"] = self._route.name
        shown["ekiben"] = self._about(final=True)
        return shown

    def refused(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what is left of a non-streamed answer that a check of the whole refused: nothing but why it ended."""
        chat = any("message" in choice for choice in body.get("choices", []))
        empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"text": ""}
        choices = [
            {"index": choice.get("index", 0), **empty, "finish_reason": CONTENT_FILTER} for choice in body.get("choices", [])
        ]
        about = {**self._about(final=True), "sources": []} if self._context is not None else self._about(final=True)
        return {**_only(body, _BODY), "choices": choices, "model": self._route.name, "ekiben": about}

    def event(self, event: dict[str, Any], *, keep_usage: bool) -> dict[str, Any] | None:
        """Return one event of a stream, or None where nothing of it is to be shown yet."""
        shown = dict(event) if not self._guard.hides_output else _only(event, _BODY)
        shown["model"] = self._route.name
        choices = [self._delta_choice(choice) for choice in event.get("choices", []) if choice.get("index", 0) not in self._ended]
        shown["choices"] = [choice for choice in choices if choice is not None]
        if not keep_usage:
            shown.pop("usage", None)
            if not event.get("choices"):
                return None
        if event.get("choices") and not shown["choices"]:
            return None
        final = any(choice.get("finish_reason") for choice in shown["choices"])
        if final or not self._announced:
            self._announced = True
            shown["ekiben"] = self._about(final=final)
        return shown

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice.get("index", 0)
        shown = dict(choice) if not self._guard.hides_output else _only(choice, _CHOICE)
        if "message" in choice:
            shown["message"] = said = self._said(index, choice["message"])
        else:
            said = self._said(index, choice)
            shown |= said
        if self._blocked(index):
            said.pop("tool_calls", None)  # half a call must not be made
            shown.pop("tool_calls", None)
            shown["finish_reason"] = CONTENT_FILTER
        return shown

    def _said(self, index: int, source: dict[str, Any]) -> dict[str, Any]:
        said = dict(source) if not self._guard.hides_output else _only(source, _MESSAGE)
        for name in TEXT_FIELDS:
            if isinstance(source.get(name), str):
                said[name] = self._guarded(index, name, 0, source[name], last=True)
        calls: list[dict[str, Any]] = source.get("tool_calls") or []
        if calls:
            said["tool_calls"] = [self._tool_call(index, number, call, last=True) for number, call in enumerate(calls)]
        if isinstance(said.get("content"), str):
            said["content"] += self._concluded(index)
        return said

    def _delta_choice(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        index = choice.get("index", 0)
        shown = dict(choice) if not self._guard.hides_output else _only(choice, _CHOICE)
        chat = "delta" in choice
        source = choice.get("delta") or {} if chat else choice
        delta = dict(source) if not self._guard.hides_output else _only(source, _MESSAGE)
        for name in TEXT_FIELDS:
            if isinstance(source.get(name), str):
                delta[name] = self._guarded(index, name, 0, source[name])
        if source.get("tool_calls"):
            delta["tool_calls"] = [self._tool_call(index, call.get("index", 0), call) for call in source["tool_calls"]]
        if choice.get("finish_reason") and not self._blocked(index):
            self._flush(index, delta)
            if chat and (cited := self._concluded(index)):
                delta["content"] = (delta.get("content") or "") + cited
        if self._blocked(index):
            self._ended.add(index)
            delta.pop("tool_calls", None)
            shown["finish_reason"] = CONTENT_FILTER
        if chat:
            shown["delta"] = delta
        else:
            shown |= delta
        says = any(delta.get(name) for name in (*TEXT_FIELDS, "role", "tool_calls")) or shown.get("finish_reason")
        silenced = self._guard.hides_output and any(isinstance(source.get(name), str) for name in TEXT_FIELDS)
        return None if silenced and not says else shown

    def _tool_call(self, index: int, number: int, call: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        function = call.get("function") or {}
        if not isinstance(function.get("arguments"), str):
            return call
        arguments = self._guarded(index, "tool_calls", number, function["arguments"], last=last)
        return {**call, "function": {**function, "arguments": arguments}}

    def _guarded(self, index: int, name: str, number: int, text: str, *, last: bool = False) -> str:
        texts = self._texts[index]
        guarded = texts.get((name, number))
        if guarded is None:
            guarded = OutputGuard(self._guard, "tool_arguments" if name == "tool_calls" else "text")
            texts[name, number] = guarded
        return guarded.feed(text) + (guarded.finish() if last else "")

    def _flush(self, index: int, delta: dict[str, Any]) -> None:
        for (name, number), guarded in self._texts[index].items():
            rest = guarded.finish()
            if not rest:
                continue
            if name == "tool_calls":
                delta.setdefault("tool_calls", []).append({"index": number, "function": {"arguments": rest}})
            else:
                delta[name] = (delta.get(name) or "") + rest

    def _blocked(self, index: int) -> bool:
        return any(guarded.blocked is not None for guarded in self._texts[index].values())

    def spoken(self, index: int) -> str:
        """Return what a choice has said, its placeholders still in place."""
        texts = self._texts[index]
        return "".join(texts[key].spoken for key in (("content", 0), ("text", 0)) if key in texts)

    def _concluded(self, index: int) -> str:
        """Check what was said against the passages; return what is to be added: the sources it cites."""
        if self._context is None or self._blocked(index):
            return ""
        spoken = self.spoken(index)
        if self._guard.compares:
            told = self._guard.check_answer(index, spoken, [beside(self._guard, text) for text in self._context.texts()])
            if told is not None:
                self._grounded.append(told)
        added = self._context.cite(spoken)
        self._cited |= self._context.cited(spoken + added)
        return added

    def _about(self, *, final: bool) -> dict[str, Any]:
        about: dict[str, Any] = {k: v for k, v in self._route.versions().items() if v is not None}
        if self._context is not None and self._context.index is not None:
            about["index"] = self._context.index
        if final:
            about["guards"] = [finding.as_dict() for finding in self._guard.findings]
            if self._grounded:
                about["groundedness"] = self._grounded
            if self._context is not None:
                about["sources"] = [self._source(source) for source in self._context.sources()]
                about["abstained"] = not self._context.passages
        return about

    def _source(self, source: dict[str, Any]) -> dict[str, Any]:
        return {**source, "cited": source["number"] in self._cited, "excerpt": beside(self._guard, source["excerpt"])}


def beside(guard: Guard, text: str) -> str:
    """Return a passage as it may be shown beside an answer: guarded like it, but no finding of its own. Raises GuardFailure."""
    guarded = OutputGuard(replace(guard, findings=[]))
    return guarded.feed(text) + guarded.finish()


def as_events(body: dict[str, Any], *, keep_usage: bool) -> Iterator[dict[str, Any]]:
    """Yield a whole answer as the events of a stream."""
    kind = "chat.completion.chunk" if body.get("object") == "chat.completion" else "text_completion"
    head = {**{name: value for name, value in body.items() if name not in {"choices", "usage", "ekiben"}}, "object": kind}
    for choice in body["choices"]:
        index = choice.get("index", 0)
        if "message" in choice:
            message = dict(choice["message"])
            if message.get("tool_calls"):
                message["tool_calls"] = [{"index": number, **call} for number, call in enumerate(message["tool_calls"])]
            said: dict[str, Any] = {"delta": message}
            nothing: dict[str, Any] = {"delta": {}}
        else:
            said, nothing = {"text": choice.get("text", "")}, {"text": ""}
        yield {**head, "choices": [{"index": index, **said, "finish_reason": None}]}
        end = {"index": index, **nothing, "finish_reason": choice.get("finish_reason")}
        yield {**head, "choices": [end], **_only(body, ("ekiben",))}
    if keep_usage and "usage" in body:
        yield {**head, "choices": [], "usage": body["usage"]}


def spoken(model: str, text: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole answer that says `text`, by no model."""
    chat = "messages" in payload
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": new_id(chat=chat),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()), "model": model,
        "choices": [{"index": index, **said, "finish_reason": "stop"} for index in range(payload.get("n") or 1)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }  # fmt: skip


def new_id(*, chat: bool) -> str:
    """Return the id of an answer."""
    return f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"


def without_usage(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return an event for a caller who did not ask for usage, None where nothing else is in it."""
    if "usage" not in event:
        return event
    rest = {name: value for name, value in event.items() if name != "usage"}
    return rest if event.get("choices") else None


def text_of(choice: dict[str, Any]) -> str:
    """Return what a choice of a whole answer says."""
    return str(choice.get("message", choice).get("content" if "message" in choice else "text") or "")


class Gathered:
    """The events of one stream, put together to a whole answer again."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def take(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self._head |= {name: value for name, value in event.items() if name != "choices"}
        for part in event.get("choices", ()):
            chat = "delta" in part
            index = part.get("index", 0)
            choice = self._choices.setdefault(index, {"index": index, **({"message": {}} if chat else {"text": ""})})
            said = choice["message"] if chat else choice
            for name, value in (part.get("delta") or {} if chat else _only(part, ("text",))).items():
                said[name] = (said.get(name) or "") + value if name in TEXT_FIELDS and isinstance(value, str) else value
            for name in ("finish_reason", "stop_reason"):
                if part.get(name) is not None:
                    choice[name] = part[name]

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        chat = any("message" in choice for choice in self._choices.values())
        kind = "chat.completion" if chat else "text_completion"
        return {**self._head, "object": kind, "choices": [self._choices[index] for index in sorted(self._choices)]}


# Where answers are guarded, only these fields leave: anything else (token ids, logprobs) might show what was hidden.
_BODY = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
_CHOICE = ("index", "finish_reason", "stop_reason", "message", "text")
_MESSAGE = ("role", "content", "reasoning", "reasoning_content", "refusal", "tool_calls", "text")


def _only(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}
