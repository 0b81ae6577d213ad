"""One text of an answer on its way to the caller: values hidden, phrases and leaks looked for, placeholders put back.

The steps stand behind one another. Each holds back what it cannot be sure of yet and no more, and gives the same whatever
the pieces are, so the whole does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from guards.normalize import normalize
from guards.policy import LeakCheck, ModerationCheck, ValueCheck
from guards.stream import Stop

if TYPE_CHECKING:
    from guards.guard import Guard
    from guards.leak import LeakStream
    from guards.moderation import Moderation
    from guards.placeholders import Restorer, Vault

Kind = Literal["text", "tool_arguments"]


class Step(Protocol):
    """A step of the way."""

    @property
    def stopped(self) -> Stop | None:
        """Why the text ends where it does, if a check ended it."""
        ...

    def feed(self, piece: str) -> str:
        """Return what may go on so far."""
        ...

    def finish(self) -> str:
        """Return the rest."""
        ...


class OutputGuard:
    """One text: call `feed` with each piece, then `finish` once; both raise GuardFailure.

    Where a check blocks, `blocked` says why; the text ends before what it found, and what is fed later is not looked at.
    `spoken` collects what was said with placeholders still in place, as the rest of the path may see it.
    """

    def __init__(self, guard: Guard, kind: Kind = "text") -> None:
        content = guard.policy.content
        self._steps: list[Step] = []
        if any(isinstance(check, ValueCheck) for check in content.output):
            self._steps.append(guard.hold("output", content.output))
        self._steps += [_Moderated(guard, check) for check in content.output if isinstance(check, ModerationCheck)]
        if guard.system_prompt:
            self._steps += [_Watched(guard, check) for check in content.output if isinstance(check, LeakCheck)]
        self._restorer = _restorer(guard.vault, content.restore, kind)
        self.blocked: Stop | None = None
        self.spoken = ""

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        return self._through(piece, final=False)

    def finish(self) -> str:
        """Return the rest."""
        return self._through("", final=True)

    def _through(self, text: str, *, final: bool) -> str:
        if self.blocked is not None:
            return ""
        for step in self._steps:
            text = step.feed(text) if text else ""
            if final and step.stopped is None:
                text += step.finish()
            if step.stopped is not None:
                self.blocked, final = step.stopped, True
        self.spoken += text
        if self._restorer is not None:
            text = self._restorer.feed(text) + (self._restorer.finish() if final else "")
        return text


def _restorer(vault: Vault, places: tuple[str, ...], kind: Kind) -> Restorer | None:
    if kind not in places:
        return None
    # Arguments are JSON: what is put back there must not end the string it stands in.
    quote = (lambda value: json.dumps(value, ensure_ascii=False)[1:-1]) if kind == "tool_arguments" else str
    return vault.restorer(urls="urls" in places, quote=quote)


@dataclass
class _Moderated:
    """Phrases of word lists; a phrase is never shown in part."""

    guard: Guard
    check: ModerationCheck
    stopped: Stop | None = None
    _pending: str = ""
    _before: str = ""

    def __post_init__(self) -> None:
        self._phrases: Moderation = self.guard.detectors.moderation(self.guard.policy, self.check)

    def feed(self, piece: str) -> str:
        return self._look(piece, final=False)

    def finish(self) -> str:
        return self._look("", final=True)

    def _look(self, piece: str, *, final: bool) -> str:
        self._pending += piece
        whole, lead = self._before + self._pending, len(self._before)
        hold, hits = self.guard.run("output", self.check, lambda: (self._phrases.hold(whole), self._phrases.find(whole))) or (
            0,
            (),
        )
        cut = len(whole) if final else max(lead, len(whole) - hold)
        for hit in reversed(hits):
            if hit.start < cut < hit.end:
                cut = max(lead, hit.start)
        out, at = [], lead
        for hit in hits:
            if hit.start < at or hit.end > cut:
                continue
            try:
                self.guard.act("output", self.check, f"{hit.category}:{hit.phrase}")
            except Stop as stop:
                self.stopped, cut = stop, hit.start
                break
            if self.check.action == "mask" and not self.check.shadow:
                out += [whole[at : hit.start], "***"]
                at = hit.end
        out.append(whole[at:cut])
        # Without invisible characters, or the letters before them would be out of reach.
        seen = normalize(whole[:cut]).text
        self._before, self._pending = seen[-self._phrases.longest - 1 :], whole[cut:]
        return "".join(out)


@dataclass
class _Watched:
    """The system prompt; what may become a leak is held back."""

    guard: Guard
    check: LeakCheck
    stopped: Stop | None = None
    _pending: str = ""
    _told: bool = False

    def __post_init__(self) -> None:
        self._leaks: LeakStream = self.guard.detectors.leaks(self.guard.system_prompt, self.guard.canary).stream()

    def feed(self, piece: str) -> str:
        known = len(self._pending)
        self._pending += piece
        certain = self.guard.run("output", self.check, lambda: self._certain(piece, known)) if not self._told else None
        if self._leaks.leak is not None and not self._told:
            self._told = True
            try:
                self.guard.act("output", self.check, self._leaks.leak.kind)
            except Stop as stop:
                self.stopped = stop
        if self.stopped is None and (certain is None or self.check.action == "flag" or self.check.shadow):
            return self.finish()
        shown, self._pending = self._pending[: certain or 0], self._pending[certain or 0 :]
        return shown

    def finish(self) -> str:
        rest, self._pending = self._pending, ""
        return rest

    def _certain(self, piece: str, known: int) -> int:
        """Return how much of what is pending is harmless; letter by letter, or it would depend on the pieces."""
        harmless = 0
        for read, char in enumerate(piece, start=known + 1):
            if self._leaks.feed(char) is not None:
                break
            harmless = max(harmless, read - self._leaks.hold())
        return harmless
