"""Whether the audit trail is as it was written, and where not.

A line whose own seal does not hold was altered, or inserted where its neighbours need none between them. Lines that hold have
numbers: those that are missing were removed, those out of their order were moved or copied. The head says how far a chain goes,
so its end cannot be cut off, and the first line of a chain names the others there were, so none goes away whole.

What is not seen: whoever has the key can forge everything, and without a key everybody can; and head and files put back together
to an earlier state of both, unless that state's successor was noted elsewhere (`anchors`).
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accounts.chain import PRUNED, START, ChainFile, Point, Tombstone, chain_files, decode, key_id, read_heads, read_tombstones

What = Literal["altered", "removed", "inserted", "torn", "unsigned", "another key"]


@dataclass(frozen=True)
class Problem:
    """Where a chain is broken."""

    what: What
    file: str
    line: int
    """From 1; 0 is the file as a whole."""
    message: str

    @property
    def tampering(self) -> bool:
        """Whether somebody did it; a torn line is what a crash leaves."""
        return self.what != "torn"


@dataclass
class Chain:
    """One chain, as it was found."""

    name: str
    lines: int = 0
    requests: int = 0
    ends: list[tuple[Path, Point]] = field(default_factory=list)
    """The files, and the last line of each that holds."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def head(self) -> Point:
        """The last line."""
        return self.ends[-1][1] if self.ends else START


@dataclass
class Verification:
    """What came of it."""

    chains: dict[str, Chain]
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether nothing was tampered with."""
        return not any(problem.tampering for problem in self.problems)

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(len(chain.ends) for chain in self.chains.values())

    @property
    def lines(self) -> int:
        """How many lines hold."""
        return sum(chain.lines for chain in self.chains.values())

    @property
    def requests(self) -> int:
        """How many of them are requests."""
        return sum(chain.requests for chain in self.chains.values())


class _Line(NamedTuple):
    number: int
    point: Point | None
    """None where the seal does not hold."""
    prev: str


class _File(NamedTuple):
    lines: list[_Line]
    torn: bool
    opening: dict[str, Any] | None
    """The fields of the first line, where it holds."""
    key: str | None
    """The id of the key of the first line, whether it holds or not."""
    requests: int


def verify(folder: Path, key: bytes | None, anchors: Mapping[str, Point] | None = None) -> Verification:
    """Look at every line of a folder; it may be written to meanwhile. `anchors` are ends of chains that were noted earlier."""
    heads = read_heads(folder, key)  # before the files: a chain goes at least so far
    stones, broken = read_tombstones(folder, key)
    by_chain: dict[str, list[ChainFile]] = {name: [] for name in heads}
    for one in chain_files(folder):
        by_chain.setdefault(one.chain, []).append(one)
    problems = [Problem("altered", PRUNED, number, "the seal of this tombstone does not hold") for number in broken]
    chains: dict[str, Chain] = {}
    seen: dict[str, tuple[int, str]] = {}
    for name, files in by_chain.items():
        start = stones[name].upto if name in stones else START
        ends = [point for point in (heads.get(name), (anchors or {}).get(name)) if point]
        walk = _Walk(name, key, start, ends)
        for here, then in pairwise([*files, None]):
            if here is not None:
                walk.file(here, then)
        if name not in heads:
            walk.chain.problems.append(Problem("removed", f"{name}.head", 0, "the head of this chain is missing"))
        elif heads[name] is None and not walk.other_key:
            walk.chain.problems.append(_bad_head(folder / f"{name}.head", walk.chain.lines))
        walk.end()
        chains[name] = walk.chain
        problems += walk.chain.problems
        seen.update((other, (n, walk.opened)) for other, n in walk.seen.items())
    seen.update((name, (point.n, "an earlier verification")) for name, point in (anchors or {}).items())
    return Verification(chains, [*problems, *_missing(chains, stones, seen)])


def _missing(
    chains: Mapping[str, Chain], stones: Mapping[str, Tombstone], seen: Mapping[str, tuple[int, str]]
) -> Generator[Problem]:
    """Yield the chains that are known of and not there, or not as far as they are known to have gone."""
    for name in sorted({*seen, *stones}):
        stone = stones.get(name)
        if stone and stone.gone:
            continue
        pruned = stone.upto.n if stone else 0
        n, by = seen.get(name, (pruned, PRUNED))
        if name not in chains:
            yield Problem("removed", name, 0, f"the whole chain of {n} lines or more is missing; {by} knew it")
        elif max(chains[name].head.n, pruned) < n and not any(problem.tampering for problem in chains[name].problems):
            yield Problem("removed", name, 0, f"{by} knew {n} lines of this chain, and there are {chains[name].head.n}")


class _Walk:
    """Goes over the files of a chain, one after the other."""

    def __init__(self, name: str, key: bytes | None, start: Point, ends: Sequence[Point]) -> None:
        self.chain = Chain(name)
        self._key, self._last, self._where = key, start, ("", 0)
        self._pruned = start.n
        self._ends = {point.n: point.hash for point in ends}
        self.seen: dict[str, int] = {}
        self.opened = ""
        self.other_key = False

    def file(self, file: ChainFile, then: ChainFile | None) -> None:
        path = file.path
        read = _read(path, self._key, self.chain.name)
        if read.key is not None and read.key != key_id(self._key) and not any(line.point for line in read.lines):
            return self._foreign(path, read.key)
        if read.opening is not None:
            self.seen.update(read.opening.get("seen", {}))
            self.opened = self.opened or path.name
            n = read.opening["n"]
            if n <= self._pruned:  # pruning was stopped before it had removed what it noted
                self._last = Point(n - 1, read.opening["prev"])
        upto = _first(then, self._key, self.chain.name)
        placed = _in_order(read.lines, self._last.n, upto)
        elsewhere = {line.point.n for line in read.lines if line.point and line.number not in placed}
        unsealed: list[int] = []
        for line in read.lines:
            if line.point is None:
                unsealed.append(line.number)
            elif line.number not in placed:
                self._tell("inserted", path, line.number, f"line {line.point.n} of the chain stands here, out of its place")
            else:
                self._step(path, line, unsealed, elsewhere)
                unsealed = []
        self.chain.lines += len(read.lines) - len(unsealed)
        self.chain.requests += read.requests
        self._finish(path, read, unsealed, upto)
        self.chain.ends.append((path, self._last))
        return None

    def end(self) -> None:
        """Hold the chain against how far it is known to have gone."""
        if (known := max(self._ends, default=0)) > max(self._last.n, self._pruned) and not self.other_key:
            path, line = self._where
            message = f"the chain ends with line {self._last.n}, but went to {known}: {known - self._last.n} lines were removed"
            self.chain.problems.append(Problem("removed", path or f"{self.chain.name}.head", line, message))

    def _step(self, path: Path, line: _Line, unsealed: list[int], elsewhere: set[int]) -> None:
        assert line.point is not None  # noqa: S101  for the type checker
        gap = line.point.n - self._last.n - 1
        self._unsealed(path, unsealed, gap)
        missing = [n for n in range(self._last.n + 1 + len(unsealed[:gap]), line.point.n) if n not in elsewhere]
        if missing:
            told = f"line {missing[0]}" if len(missing) == 1 else f"{len(missing)} lines, {missing[0]} to {missing[-1]}"
            self._tell("removed", path, line.number, f"before this line, {told} of the chain was removed")
        if gap == 0 and self._last.hash and line.prev != self._last.hash:
            before = self._where if self._where[1] else (path.name, line.number)
            self._tell("altered", path.with_name(before[0]), before[1], "written anew: the line behind it knows another seal")
        self._last, self._where = line.point, (path.name, line.number)
        if (known := self._ends.get(line.point.n)) is not None and known != line.point.hash:
            self._tell("altered", path, line.number, "written anew: the head, or an earlier verification, knows another seal")

    def _finish(self, path: Path, read: _File, unsealed: list[int], upto: int | None) -> None:
        """Judge what stands behind the last line that holds; `upto` is the number of the next file's first line."""
        known = max(self._ends, default=0) if upto is None else upto - 1
        torn = unsealed.pop() if read.torn and unsealed else None
        room = max(0, known - self._last.n)
        if torn is not None and room > len(unsealed):
            unsealed.append(torn)
            torn = None
        self._unsealed(path, unsealed, room)
        if torn is not None:
            self._tell("torn", path, torn, "half a line: the process or the machine stopped while it was written")
        altered = len(unsealed[:room])
        if altered:
            self._last, self._where = Point(self._last.n + altered, ""), (path.name, unsealed[altered - 1])
        if upto is not None and room > altered:
            self._tell("removed", path, 0, f"{room - altered} lines at the end of this file were removed")
            self._last = Point(known, "")

    def _unsealed(self, path: Path, lines: list[int], gap: int) -> None:
        for index, number in enumerate(lines):
            if index < gap:
                self._tell("altered", path, number, "its seal does not hold")
            else:
                self._tell("inserted", path, number, "its seal does not hold, and no line is missing here")

    def _foreign(self, path: Path, key: str) -> None:
        self.other_key = True
        what, message = ("another key", f"sealed with the key {key}: verify with that one") if key else (
            "unsigned", "written without a key: anybody could have written it")  # fmt: skip
        self._tell(what, path, 0, message)
        self.chain.ends.append((path, self._last))

    def _tell(self, what: What, path: Path, line: int, message: str) -> None:
        self.chain.problems.append(Problem(what, path.name, line, message))


def _bad_head(path: Path, lines: int) -> Problem:
    if lines <= 1 and path.stat().st_size == 0:
        return Problem("torn", path.name, 0, "the process was stopped while it began this chain")
    return Problem("altered", path.name, 0, "the seal of this head does not hold")


def _read(path: Path, key: bytes | None, chain: str) -> _File:
    lines: list[_Line] = []
    torn, opening, told_key, requests = False, None, None, 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            fields = _told(raw, key, chain)
            torn = not raw.endswith(b"\n")
            if number == 1:
                opening = fields
                told_key = _told_key(raw)
            if fields is None or torn:
                lines.append(_Line(number, None, ""))
                continue
            requests += fields["kind"] == "request"
            lines.append(_Line(number, Point(fields["n"], fields["hash"]), fields["prev"]))
    return _File(lines, torn, opening, told_key, requests)


def _told(raw: bytes, key: bytes | None, chain: str) -> dict[str, Any] | None:
    """Return the fields of a line that holds and says where it belongs; without a key anybody can seal a line that does not."""
    fields = decode(raw, key, chain)
    if fields is None or not isinstance(fields.get("n"), int) or not isinstance(fields.get("prev"), str) or "kind" not in fields:
        return None
    return fields


def _told_key(raw: bytes) -> str | None:
    try:
        told = json.loads(raw)
        return str(told["key"]) if told["kind"] == "open" else None
    except (ValueError, TypeError, KeyError):
        return None


def _first(file: ChainFile | None, key: bytes | None, chain: str) -> int | None:
    """Return the number of the first line of a file, where that line holds."""
    if file is None:
        return None
    with file.path.open("rb") as opened:
        fields = _told(opened.readline(), key, chain)
    return fields["n"] if fields else None


def _in_order(lines: Sequence[_Line], after: int, before: int | None) -> set[int]:
    """Return the places of the longest run of lines whose numbers rise, between two numbers."""
    until = before or sys.maxsize
    numbers = [(line.point.n, line.number) for line in lines if line.point and after < line.point.n < until]
    if all(second[0] > first[0] for first, second in pairwise(numbers)):
        return {place for _, place in numbers}
    tails: list[int] = []
    ending: list[int] = []
    back: list[int] = []
    for index, (n, _) in enumerate(numbers):
        length = bisect_left(tails, n)
        if length == len(tails):
            tails.append(n)
            ending.append(index)
        else:
            tails[length], ending[length] = n, index
        back.append(ending[length - 1] if length else -1)
    found: set[int] = set()
    at = ending[-1] if ending else -1
    while at >= 0:
        found.add(numbers[at][1])
        at = back[at]
    return found
