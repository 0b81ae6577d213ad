"""What all guards of a process share: models, word lists, keys, and the threads that keep deadlines."""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guards.injection import Verdict, assess
from guards.leak import LeakDetector, canary
from guards.moderation import DEFAULT_LISTS, Moderation
from guards.pii import Span, find_pii
from guards.policy import ModerationCheck, NamesCheck, Policy, ValueCheck

if TYPE_CHECKING:
    from guards.thresholds import Source

_THREADS = 8


class Unavailable(RuntimeError):
    """A policy asks for what this process does not have; the message says what to do."""


@dataclass
class Detectors:
    """The detectors, as a policy's checks ask for them.

    `names` finds persons and places (see `guards.names`). `injection_model` is a classifier beside ours, which gives a
    probability of attack: the higher one counts. Both are asked in threads, and may take as long as a check's deadline.
    `key` makes hashes and canaries: give every replica the same one, or what they hash differs.
    """

    names: Callable[[str], list[Span]] | None = None
    injection_model: Callable[[str], float] | None = None
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _pool: ThreadPoolExecutor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, policy: Policy) -> None:
        """Raise Unavailable where the policy asks for more than there is, and read what it needs."""
        for check in policy.content.checks():
            if isinstance(check, NamesCheck) and self.names is None:
                msg = f"policy {policy.name!r} looks for names, and the bundle has no model for them: add `names` to bundle.yaml"
                raise Unavailable(msg)
            if isinstance(check, ModerationCheck):
                self.moderation(policy, check)

    def values(self, check: ValueCheck, text: str, context: str) -> list[Span]:
        """Return what a check looks for in a text; `context` stands before it."""
        if isinstance(check, NamesCheck):
            if self.names is None:
                raise Unavailable("there is no model for names")
            found = self.names(text)
            return [span for span in found if span.entity in check.entities and span.score >= check.threshold]
        return find_pii(text, check.entities, check.threshold, context=context)

    def injection(self, text: str, source: Source) -> Verdict:
        """Return how much a text looks like an attack."""
        verdict = assess(text, source=source)
        if self.injection_model is None:
            return verdict
        score = max(verdict.classifier, self.injection_model(text))
        together = 1 - (1 - verdict.rules) * (1 - score)
        return replace(verdict, score=together, classifier=score, rule=verdict.rule or "classifier")

    def moderation(self, policy: Policy, check: ModerationCheck) -> Moderation:
        """Return the phrases of a check."""
        return _moderation(policy.version, tuple(policy.folder / path for path in check.lists) or DEFAULT_LISTS)

    def leaks(self, prompt: str, mark: str) -> LeakDetector:
        """Return the watch over a system prompt; `mark` is its canary, or nothing."""
        return _leaks(prompt, mark)

    def canary(self, prompt: str) -> str:
        """Return the mark of a system prompt."""
        return canary(self.key, prompt)

    def digest(self, entity: str, value: str) -> str:
        """Return 12 hex digits that stand for a value, and cannot be turned back without the key."""
        return hmac.new(self.key, f"{entity}:{value}".encode(), hashlib.sha256).hexdigest()[:12]

    def in_time(self, seconds: float, look: Callable[[], Any]) -> Any:
        """Return what `look` returns; raises TimeoutError. A look that overruns ends in its own time."""
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_THREADS, thread_name_prefix="guard")
        return self._pool.submit(look).result(seconds)


@functools.lru_cache(maxsize=32)
def _moderation(version: str, lists: tuple[Path, ...]) -> Moderation:
    del version  # changes with what the lists say
    return Moderation.of(lists)


@functools.lru_cache(maxsize=64)
def _leaks(prompt: str, mark: str) -> LeakDetector:
    return LeakDetector(prompt, mark)
