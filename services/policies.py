"""The bundle's policies as they are now: a file that changes is read again, and a broken one changes nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from guards.detectors import Detectors, Unavailable
from guards.policy import ModerationCheck, Policy, PolicyError, load_policy
from services.telemetry import log

if TYPE_CHECKING:
    from services.bundle import LoadedBundle

_EVERY_SECONDS = 1.0


class Policies:
    """All policies of a bundle, by name; raises Unavailable when one asks for what `detectors` does not have."""

    def __init__(self, loaded: LoadedBundle, detectors: Detectors) -> None:
        self.detectors = detectors
        self._paths = {name: loaded.root / entry.path for name, entry in loaded.bundle.policies.items()}
        self._policies = dict(loaded.policies)
        for policy in self._policies.values():
            detectors.check(policy)
        self._seen = {name: self._state(name) for name in self._policies}
        self._looked = time.monotonic()

    def get(self, name: str) -> Policy:
        """Return a policy; files are looked at once a second at most."""
        now = time.monotonic()
        if now - self._looked >= _EVERY_SECONDS:
            self._looked = now
            for each in self._policies:
                self._reload(each)
        return self._policies[name]

    def _reload(self, name: str) -> None:
        state = self._state(name)
        if state == self._seen[name]:
            return
        self._seen[name] = state
        try:
            policy = load_policy(name, self._paths[name])
            self.detectors.check(policy)
        except (PolicyError, Unavailable) as error:
            log.error("policy kept", policy=self._policies[name].label, reason=str(error))
            return
        if policy.version != self._policies[name].version:
            log.info("policy changed", policy=policy.label, before=self._policies[name].label)
        self._policies[name] = policy

    def _state(self, name: str) -> list[tuple[float, int] | None]:
        checks = self._policies[name].content.checks()
        lists = [path for check in checks if isinstance(check, ModerationCheck) for path in check.lists]
        return [_stat(path) for path in (self._paths[name], *(self._policies[name].folder / path for path in lists))]


def _stat(path: Path) -> tuple[float, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime, found.st_size
