"""A guard: one policy applied to the messages, the passages and the answer of a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guards.injection import scan
from guards.mask import Masker, mask, pii_masker
from guards.pii import find_pii

if TYPE_CHECKING:
    from guards.policy import Policy

UNTRUSTED = frozenset({"user", "tool", "function"})


@dataclass(frozen=True)
class Finding:
    """What a detector found at a stage, and what was done; never the text itself."""

    stage: str
    detector: str
    action: str
    detail: str
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as answers and logs carry it."""
        return {
            "stage": self.stage, "detector": self.detector, "action": self.action,
            "detail": self.detail, "count": self.count,
        }  # fmt: skip


class Blocked(Exception):
    """The policy refuses this request; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


class GuardFailure(RuntimeError):
    """A detector failed: the request must not go on."""


@contextmanager
def _failing_closed(where: str) -> Generator[None]:
    """Turn every failure of a detector into a GuardFailure; a verdict passes."""
    try:
        yield
    except Blocked:
        raise
    except Exception as error:
        msg = f"a detector failed on {where}"
        raise GuardFailure(msg) from error


@dataclass
class Guard:
    """The guard of one request; `findings` grows as it looks. Every failure of a detector is a GuardFailure."""

    policy: Policy
    findings: list[Finding] = field(default_factory=list)

    @property
    def looks_at_input(self) -> bool:
        """Whether anything is done to what the caller sends."""
        stage = self.policy.content.input
        return stage.pii.action != "allow" or stage.injection.action != "allow"

    @property
    def masks_output(self) -> bool:
        """Whether answers are masked."""
        return self.policy.content.output.pii.action == "mask"

    def check_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages as the rest of the path may see them; raises Blocked or GuardFailure."""
        return [self._check_message(message) for message in messages]

    def check_text(self, text: str, *, trusted: bool = False) -> str:
        """Return one text of the caller's as the rest of the path may see it; raises Blocked or GuardFailure."""
        with _failing_closed("the input"):
            if not trusted:
                self._check_injection(text)
            return self._check_pii(text)

    def keep_passage(self, text: str) -> bool:
        """Whether a retrieved passage may reach the prompt; raises GuardFailure."""
        stage = self.policy.content.passages.injection
        if stage.action == "allow":
            return True
        with _failing_closed("a passage"):
            hit = scan(text)
        if hit.score < stage.threshold:
            return True
        self._note(Finding("passages", "injection", stage.action, hit.rule))
        return stage.action != "drop"

    def output_masker(self) -> OutputMasker | None:
        """Return a masker for one text of the answer, or None where the policy masks nothing."""
        stage = self.policy.content.output.pii
        if stage.action == "allow":
            return None
        return OutputMasker(pii_masker(stage.entities, stage.threshold))

    def note_masked(self, found: Counter[str]) -> None:
        """Record what an output masker hid."""
        for entity, count in sorted(found.items()):
            self._note(Finding("output", "pii", "mask", entity, count))

    def _check_message(self, message: dict[str, Any]) -> dict[str, Any]:
        trusted = message.get("role") not in UNTRUSTED
        checked = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            checked["content"] = self.check_text(content, trusted=trusted)
        elif isinstance(content, list):
            whole = "\n".join(_part_texts(content))
            if not trusted and whole:
                with _failing_closed("the input"):
                    self._check_injection(whole)
            checked["content"] = [
                {**part, "text": self.check_text(part["text"], trusted=True)} if _is_text(part) else part for part in content
            ]
        if calls := message.get("tool_calls"):
            checked["tool_calls"] = [
                {
                    **call,
                    "function": {**call["function"], "arguments": self.check_text(call["function"]["arguments"], trusted=True)},
                }
                for call in calls
            ]
        return checked

    def _check_injection(self, text: str) -> None:
        stage = self.policy.content.input.injection
        if stage.action == "allow":
            return
        hit = scan(text)
        if hit.score >= stage.threshold:
            self._act(Finding("input", "injection", stage.action, hit.rule))

    def _check_pii(self, text: str) -> str:
        stage = self.policy.content.input.pii
        if stage.action == "allow":
            return text
        if stage.action == "mask":
            masked, found = mask(text, stage.entities, stage.threshold)
        else:
            masked, found = text, Counter(span.entity for span in find_pii(text, stage.entities, stage.threshold))
        for entity, count in sorted(found.items()):
            self._act(Finding("input", "pii", stage.action, entity, count))
        return masked

    def _act(self, finding: Finding) -> None:
        self._note(finding)
        if finding.action == "block":
            raise Blocked(finding)

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)


@dataclass
class OutputMasker:
    """A Masker whose failures are GuardFailure."""

    masker: Masker

    def feed(self, piece: str) -> str:
        """Return what may be shown so far."""
        with _failing_closed("the output"):
            return self.masker.feed(piece)

    def finish(self) -> str:
        """Return the rest."""
        with _failing_closed("the output"):
            return self.masker.finish()


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _part_texts(content: list[Any]) -> Iterator[str]:
    return (part["text"] for part in content if _is_text(part))
