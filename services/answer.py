"""What becomes of the engine's answer before the caller sees it: masked, cited, and named by the versions that made it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guards.guard import Guard, OutputMasker
    from rag.chain import Context
    from services.routing import Route

TEXT_FIELDS = ("reasoning", "reasoning_content", "content", "refusal", "text")


class AnswerGuard:
    """The answer to one request; use either `whole` once, or `event` for each event of a stream."""

    def __init__(self, route: Route, guard: Guard, context: Context | None) -> None:
        self._route = route
        self._guard = guard
        self._context = context
        self._maskers: dict[int, dict[tuple[str, int], OutputMasker]] = defaultdict(dict)
        self._spoken: dict[int, list[str]] = defaultdict(list)
        self._announced = False

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a non-streamed answer."""
        shown = dict(body) if not self._guard.masks_output else _only(body, _BODY)
        shown["choices"] = [self._choice(choice) for choice in body.get("choices", [])]
        shown["model"] = self._route.name
        shown["ekiben"] = self._about(final=True)
        return shown

    def event(self, event: dict[str, Any], *, keep_usage: bool) -> dict[str, Any] | None:
        """Return one event of a stream, or None where nothing of it is to be shown yet."""
        shown = dict(event) if not self._guard.masks_output else _only(event, _BODY)
        shown["model"] = self._route.name
        choices = [self._delta_choice(choice) for choice in event.get("choices", [])]
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
        shown = dict(choice) if not self._guard.masks_output else _only(choice, _CHOICE)
        if "message" in choice:
            shown["message"] = self._said(index, choice["message"])
        else:
            shown |= self._said(index, choice)
        return shown

    def _said(self, index: int, source: dict[str, Any]) -> dict[str, Any]:
        said = dict(source) if not self._guard.masks_output else _only(source, _MESSAGE)
        for name in TEXT_FIELDS:
            if isinstance(source.get(name), str):
                said[name] = self._masked(index, name, 0, source[name], last=True)
        if isinstance(said.get("content"), str):
            said["content"] += self._citations(index)
        if source.get("tool_calls"):
            calls: list[dict[str, Any]] = source["tool_calls"]
            said["tool_calls"] = [self._tool_call(index, number, call, last=True) for number, call in enumerate(calls)]
        return said

    def _delta_choice(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        index = choice.get("index", 0)
        shown = dict(choice) if not self._guard.masks_output else _only(choice, _CHOICE)
        chat = "delta" in choice
        source = choice.get("delta") or {} if chat else choice
        delta = dict(source) if not self._guard.masks_output else _only(source, _MESSAGE)
        for name in TEXT_FIELDS:
            if isinstance(source.get(name), str):
                delta[name] = self._masked(index, name, 0, source[name])
        if source.get("tool_calls"):
            delta["tool_calls"] = [self._tool_call(index, call.get("index", 0), call) for call in source["tool_calls"]]
        if choice.get("finish_reason"):
            self._flush(index, delta)
            if chat and (cited := self._citations(index)):
                delta["content"] = (delta.get("content") or "") + cited
        if chat:
            shown["delta"] = delta
        else:
            shown |= delta
        says = any(delta.get(name) for name in (*TEXT_FIELDS, "role", "tool_calls")) or choice.get("finish_reason")
        silenced = self._guard.masks_output and any(isinstance(source.get(name), str) for name in TEXT_FIELDS)
        return None if silenced and not says else shown

    def _tool_call(self, index: int, number: int, call: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        function = call.get("function") or {}
        if not isinstance(function.get("arguments"), str):
            return call
        arguments = self._masked(index, "tool_calls", number, function["arguments"], last=last)
        return {**call, "function": {**function, "arguments": arguments}}

    def _masked(self, index: int, name: str, number: int, text: str, *, last: bool = False) -> str:
        masker = self._maskers[index].get((name, number)) or self._guard.output_masker()
        if masker is not None:
            self._maskers[index][name, number] = masker
            text = masker.feed(text) + (masker.finish() if last else "")
            if last:
                self._guard.note_masked(masker.masker.found)
        if name in {"content", "text"} and self._context is not None:
            self._spoken[index].append(text)
        return text

    def _flush(self, index: int, delta: dict[str, Any]) -> None:
        for (name, number), masker in self._maskers[index].items():
            rest = masker.finish()
            self._guard.note_masked(masker.masker.found)
            if not rest:
                continue
            if name == "tool_calls":
                delta.setdefault("tool_calls", []).append({"index": number, "function": {"arguments": rest}})
            else:
                delta[name] = (delta.get(name) or "") + rest
                if self._context is not None:
                    self._spoken[index].append(rest)

    def _citations(self, index: int) -> str:
        return "" if self._context is None else self._context.cite("".join(self._spoken[index]))

    def _about(self, *, final: bool) -> dict[str, Any]:
        about: dict[str, Any] = {k: v for k, v in self._route.versions().items() if v is not None}
        if final:
            about["guards"] = [finding.as_dict() for finding in self._guard.findings]
            if self._context is not None:
                about["sources"] = [self._source(source) for source in self._context.sources()]
        return about

    def _source(self, source: dict[str, Any]) -> dict[str, Any]:
        masker = self._guard.output_masker()
        if masker is None:
            return source
        return {**source, "excerpt": masker.feed(source["excerpt"]) + masker.finish()}


# Where answers are masked, only these fields leave: anything else (token ids, logprobs) might show what was hidden.
_BODY = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
_CHOICE = ("index", "finish_reason", "stop_reason", "message", "text")
_MESSAGE = ("role", "content", "reasoning", "reasoning_content", "refusal", "tool_calls", "text")


def _only(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}
