"""A release: steps in their order, planned before anything is done, and not done again where their results are there.

What a step makes follows from its inputs and the results of the steps before it. A step is left out when the record has it with
the same inputs and what it made is still there; so a release that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from services.journal import Done, Journal, Released, ReleaseError

Results = dict[str, str]


class Progress(Protocol):
    """Who is told how a release goes."""

    def step(self, text: str) -> None:
        """Begin something."""

    def advance(self, done: float, total: float) -> None:
        """Move on in it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Step:
    """One step. `run` gets the results so far and returns what it adds to them; it leaves nothing half-made when it raises."""

    name: str
    about: str
    run: Callable[[Results, Progress], Results]
    inputs: Mapping[str, str] = field(default_factory=dict)
    there: Callable[[Results], bool] | None = None
    """Whether what it made is still there; None: it judges, and is done each time."""
    seen: Callable[[], Results | None] | None = None
    """Its results where they are there and no record has them."""


class Planned(NamedTuple):
    """What will become of a step."""

    name: str
    about: str
    runs: bool


class Walked(NamedTuple):
    """What became of a step."""

    name: str
    seconds: float
    """0 where it was left out."""
    skipped: bool


class Walk:
    """The steps of one version."""

    def __init__(self, bento: str, steps: Sequence[Step], journal: Journal) -> None:
        self._bento, self._steps, self._journal = bento, steps, journal

    def plan(self) -> list[Planned]:
        """Return what will be done; nothing is."""
        results: Results | None = {}
        planned: list[Planned] = []
        for step in self._steps:
            found = None if results is None else self._found(step, results)
            planned.append(Planned(step.name, step.about, runs=found is None))
            if found is not None and results is not None:
                results |= found
            elif step.there is not None:
                results = None  # what it will make is not known yet
        return planned

    def run(self, progress: Progress, told: Callable[[Walked], None]) -> Results:
        """Do what there is to do, and return all results; raises what the steps raise."""
        results: Results = {}
        for step in self._steps:
            if (found := self._found(step, results)) is not None:
                results |= found
                told(Walked(step.name, 0.0, skipped=True))
                continue
            began = time.monotonic()
            progress.step(f"{step.name}: {step.about}")
            inputs = _digest(step, results)
            made = step.run(results, progress)
            seconds = time.monotonic() - began
            results |= made
            self._journal.append(Done(bento=self._bento, step=step.name, inputs=inputs, result=made, seconds=round(seconds, 3)))
            told(Walked(step.name, seconds, skipped=False))
        return results

    def _found(self, step: Step, results: Results) -> Results | None:
        if step.there is None:
            return None
        line = self._journal.found(self._bento, step.name, _digest(step, results))
        if line is not None and step.there(results | line.result):
            return line.result
        return step.seen() if step.seen else None


def _digest(step: Step, results: Results) -> str:
    told = json.dumps([step.name, dict(step.inputs), results], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def earlier(releases: Sequence[Released], wanted: str | None) -> tuple[Released, Released]:
    """Return the release that stands, and the one to go back to: the one before, or the one named; raises ReleaseError.

    `wanted` is a tag or a version, or the beginning of one.
    """
    if not releases:
        raise ReleaseError("nothing was released from here; `ekiben release list` prints what was")
    stands = releases[-1]
    others = [release for release in reversed(releases) if release.bento != stands.bento]
    if wanted is None:
        # After a rollback, back again would be forward: before the version that stands comes what was released before it.
        first = next(n for n, release in enumerate(releases) if release.bento == stands.bento)
        before = [release for release in reversed(releases[:first]) if release.bento != stands.bento]
        if not before:
            raise ReleaseError(f"{stands.bento} is the first release: there is none before it")
        return stands, before[0]
    named = {one.bento: one for one in reversed(others) if one.bento == wanted or one.version.startswith(wanted)}
    if stands.bento == wanted or (not named and stands.version.startswith(wanted)):
        raise ReleaseError(f"{stands.bento} is the release that stands")
    if len(named) != 1:
        what = "no release" if not named else "more than one release"
        raise ReleaseError(f"{what} is named {wanted!r}; `ekiben release list` prints them")
    return stands, next(iter(named.values()))
