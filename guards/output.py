"""One text of an answer on its way to the caller: values hidden, phrases and leaks looked for, placeholders put back.

The steps stand behind one another. Each holds back what it cannot be sure of yet and no more, and gives the same whatever
the pieces are, so the whole does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from guards.policy import LeakCheck, ModerationCheck, ValueCheck

if TYPE_CHECKING:
    from guards.guard import Guard
    from guards.leak import LeakStream
    from guards.moderation import Moderation
    from guards.placeholders import Vault

Kind = Literal["text", "tool_arguments"]


class Step(Protocol):
    """A step of the way."""

    def feed(self, piece: str) -> str:
        """Return what may go on so far."""
        ...

    def finish(self) -> str:
        """Return the rest."""
        ...


class OutputGuard:
    """One text: call `feed` with each piece, then `finish` once; both raise Blocked and GuardFailure.

    `spoken` collects what was said with placeholders still in place, as the rest of the path may see it.
    """

    def __init__(self, guard: Guard, kind: Kind = "text") -> None:
        content = guard.policy.content
        self._before: list[Step] = []
        if any(isinstance(check, ValueCheck) for check in content.output):
            self._before.append(guard.hold("output", content.output))
        self._before += [_Moderated(guard, check) for check in content.output if isinstance(check, ModerationCheck)]
        if guard.system_prompt:
            self._before += [_Watched(guard, check) for check in content.output if isinstance(check, LeakCheck)]
        self._restorer = _restorer(guard.vault, content.restore, kind)
        self.spoken = ""

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        for step in self._before:
            piece = step.feed(piece)
        self.spoken += piece
        return self._restorer.feed(piece) if self._restorer else piece

    def finish(self) -> str:
        """Return the rest."""
        rest = ""
        for step in self._before:
            rest = step.feed(rest) + step.finish() if rest else step.finish()
        self.spoken += rest
        return self._restorer.feed(rest) + self._restorer.finish() if self._restorer else rest


def _restorer(vault: Vault, places: tuple[str, ...], kind: Kind) -> Step | None:
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
        held = 0 if final else min(self.guard.run("output", self.check, lambda: self._phrases.hold(whole)) or 0, len(self._pending))
        cut = len(whole) - held
        out, at = [], lead
        for hit in self.guard.run("output", self.check, lambda: self._phrases.find(whole)) or ():
            if hit.start < lead or hit.end > cut:
                continue
            self.guard.act("output", self.check, f"{hit.category}:{hit.phrase}")
            if self.check.action == "mask" and not self.check.shadow:
                out += [whole[at : hit.start], "***"]
                at = hit.end
        out.append(whole[at:cut])
        self._before, self._pending = whole[max(0, cut - self._phrases.longest - 1) : cut], whole[cut:]
        return "".join(out)


@dataclass
class _Watched:
    """The system prompt; what may become a leak is held back."""

    guard: Guard
    check: LeakCheck
    _pending: str = ""
    _told: bool = False

    def __post_init__(self) -> None:
        self._leaks: LeakStream = self.guard.detectors.leaks(self.guard.system_prompt, self.guard.canary).stream()

    def feed(self, piece: str) -> str:
        self._pending += piece
        leak = self.guard.run("output", self.check, lambda: self._leaks.feed(piece))
        if leak is not None and not self._told:
            self._told = True
            self.guard.act("output", self.check, leak.kind)
        if self._told or self.check.action == "flag" or self.check.shadow:
            return self.finish()
        cut = len(self._pending) - min(self._leaks.hold(), len(self._pending))
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown

    def finish(self) -> str:
        rest, self._pending = self._pending, ""
        return rest
