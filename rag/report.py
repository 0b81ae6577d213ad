"""What became of a collection's documents when its index was built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """Sources by what became of them, chunks by where their vectors come from; `seconds` is the time of the whole build.

    `resumed` chunks were embedded by a run that did not end. `dropped` and `changed_by_check` count what the check did to
    the chunks of the index as it is now, whenever they were read.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    embedded: int = 0
    kept: int = 0
    resumed: int = 0
    chunks_removed: int = 0
    dropped: int = 0
    changed_by_check: int = 0
    seconds: float = 0.0

    @property
    def read(self) -> list[str]:
        """The sources that are in the index."""
        return sorted([*self.new, *self.changed, *self.unchanged])

    @property
    def chunks_per_second(self) -> float:
        """Chunks embedded in a second of the whole build."""
        return self.embedded / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON tells it."""
        return {**asdict(self), "seconds": round(self.seconds, 3), "chunks_per_second": round(self.chunks_per_second, 1)}

    def lines(self) -> list[str]:
        """Return the report for people."""
        found = [
            f"documents: {len(self.new)} new, {len(self.changed)} changed, {len(self.unchanged)} unchanged, "
            f"{len(self.removed)} removed, {len(self.refused)} refused",
            f"chunks: {self.chunks}: {self.embedded} embedded, {self.kept} kept, {self.resumed} from a run that did not end; "
            f"{self.chunks_removed} removed",
            f"{self.seconds:.1f} s, {self.chunks_per_second:.1f} chunks embedded a second",
        ]
        if self.dropped or self.changed_by_check:
            found.insert(2, f"by the policy: {self.dropped} chunks dropped, {self.changed_by_check} changed")
        return found + [f"refused {name}: {why}" for name, why in self.refused.items()]
