"""What is too old of the audit trail is removed, file by file; a sealed note says up to where, so that the rest still holds."""

from __future__ import annotations

import fcntl
import os  # noqa: TID251  to replace a file on the disk
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from accounts.chain import PRUNED, Tombstone, encode_tombstone, read_tombstones
from accounts.verify import Chain, verify


@dataclass
class Pruned:
    """What became of it."""

    files: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Chains that are left alone because they are broken, and the first thing that is wrong with each."""


def prune(folder: Path, key: bytes | None, days: int) -> Pruned:
    """Remove the files that were last written to more than some days ago; raises OSError and ValueError.

    A broken chain is left alone: it is evidence. The last file of a chain whose process lives is kept.
    """
    if days < 1:
        raise ValueError("a trail is kept for a day at least")
    done = Pruned()
    with FileLock(folder / "prune.lock"):
        stones, broken = read_tombstones(folder, key)
        if broken:
            raise ValueError(f"{folder / PRUNED} is broken in line {broken[0]}: nothing was removed")
        removed: list[Path] = []
        for chain in verify(folder, key).chains.values():
            if wrong := [problem for problem in chain.problems if problem.tampering]:
                done.kept[chain.name] = f"{wrong[0].file}:{wrong[0].line}: {wrong[0].message}"
                continue
            paths, stone = _old(folder, chain, time.time() - days * 86_400)
            if stone is not None:
                stones[chain.name] = stone
                removed += paths
        if removed:
            # First the note, then the files: stopped in between, the rest goes the next time.
            _replace(folder / PRUNED, b"".join(encode_tombstone(stone, key) for stone in stones.values()))
            for path in removed:
                path.unlink()
                done.files.append(path.name)
    return done


def _old(folder: Path, chain: Chain, before: float) -> tuple[list[Path], Tombstone | None]:
    old = 0
    while old < len(chain.ends) and chain.ends[old][0].stat().st_mtime < before:
        old += 1
    head = folder / f"{chain.name}.head"
    gone = old == len(chain.ends) and not _alive(head) and head.stat().st_mtime < before
    if old == len(chain.ends) and not gone:
        old -= 1
    if old <= 0:
        return [], None
    paths = [path for path, _ in chain.ends[:old]]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return [*paths, *([head] if gone else [])], Tombstone(chain.name, chain.ends[old - 1][1], gone, at)


def _alive(head: Path) -> bool:
    """Whether the process that writes the chain lives: it holds a lock on the head."""
    with head.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
