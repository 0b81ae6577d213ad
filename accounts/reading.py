"""The audit trail, read: what was asked between two times, the last lines, and lines as they come. Nothing is verified here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from heapq import merge, nlargest
from itertools import groupby
from pathlib import Path
from typing import Any

from accounts.chain import chain_files

Line = dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """Which requests are wanted; None is any. Times are as in the trail, ISO 8601 in UTC, or a beginning of that."""

    tenant: str | None = None
    route: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None
    """Up to this, without it."""

    def wants(self, line: Line) -> bool:
        """Whether a line is one of them."""
        if line.get("kind") != "request" or not self.within(line):
            return False
        wanted = (("tenant", self.tenant), ("route", self.route), ("outcome", self.outcome))
        return all(value is None or line.get(name, "") == value for name, value in wanted)

    def within(self, line: Line) -> bool:
        """Whether a line is of the time that is wanted."""
        at = line.get("at", "")
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def moment(text: str) -> str:
    """Return a date or a time, of UTC unless it says otherwise, as times stand in the trail; raises ValueError."""
    if len(text) == len("2026-01-31"):
        return date.fromisoformat(text).isoformat()
    told = datetime.fromisoformat(text)
    told = told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    return told.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_PIECE = 64 * 1024


def read(folder: Path, wanted: Filter) -> Iterator[Line]:
    """Yield the requests, by time."""
    chains = groupby(chain_files(folder), key=lambda one: one.chain)
    return merge(*(_chain([one.path for one in files], wanted) for _, files in chains), key=lambda line: line["at"])


def last(folder: Path, count: int, wanted: Filter) -> list[Line]:
    """Return the last requests, by time."""
    found: list[Line] = []
    if count < 1:
        return found
    for path in sorted((one.path for one in chain_files(folder)), key=lambda path: path.stat().st_mtime, reverse=True):
        changed = datetime.fromtimestamp(path.stat().st_mtime + 1, UTC).isoformat()
        if len(found) >= count and min(line["at"] for line in found) > changed:
            break
        found = nlargest(count, [*found, *_chain([path], wanted)], key=lambda line: line["at"])
    return found[::-1]


def follow(folder: Path, wanted: Filter, *, wait: Callable[[], None] = lambda: time.sleep(0.3)) -> Generator[Line]:
    """Yield requests that are written from now on, for ever; `wait` is called where there is none."""
    places = {one.path: one.path.stat().st_size for one in chain_files(folder)}
    while True:
        found: list[Line] = []
        for one in chain_files(folder):
            with one.path.open("rb") as file:
                file.seek(places.get(one.path, 0))
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break
                    places[one.path] = places.get(one.path, 0) + len(raw)
                    if (line := _line(raw)) is not None and wanted.wants(line):
                        found.append(line)
        yield from sorted(found, key=lambda line: line["at"])
        if not found:
            wait()


def _chain(paths: list[Path], wanted: Filter) -> Generator[Line]:
    for path in paths:
        place = 0
        while True:
            # Closed in between: there may be more chains than files may be open.
            with path.open("rb") as file:
                file.seek(place)
                raws = file.readlines(_PIECE)
                place = file.tell()
            if not raws:
                break
            for raw in raws:
                line = _line(raw)
                if line is not None and wanted.wants(line):
                    yield line


def _line(raw: bytes) -> Line | None:
    """Return a line; None where it cannot be read, which `ekiben audit verify` tells."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("at"), str) else None
