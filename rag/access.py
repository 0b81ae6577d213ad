"""Who may find which documents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """What one search may find.

    A chunk is found when it belongs to this tenant or to none, and has no access labels or one of these. There is no default:
    whoever searches says for whom.
    """

    tenant: str
    labels: frozenset[str]

    def allows(self, tenant: str, labels: frozenset[str]) -> bool:
        """Whether a chunk of that tenant ("" for none) with these labels may be found."""
        return tenant in {"", self.tenant} and (not labels or not self.labels.isdisjoint(labels))
