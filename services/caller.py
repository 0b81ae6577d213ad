"""Who a request is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Caller:
    """The tenant a request belongs to, and the roles of whoever sent it."""

    tenant: str = DEFAULT_TENANT
    roles: frozenset[str] = frozenset()

    def fits(self, tenant: str | None, role: str | None) -> bool:
        """Whether this caller is of that tenant and has that role; None is any."""
        return tenant in {None, self.tenant} and (role is None or role in self.roles)


ANYBODY = Caller()


@dataclass(frozen=True)
class CallerHeaders:
    """The headers in which a trusted proxy names tenant and roles; None where it does not."""

    tenant: str | None = None
    roles: str | None = None

    def read(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller; `headers` has names in lower case. Who has no such header belongs to the default tenant."""
        tenant = headers.get(self.tenant.lower(), "").strip() if self.tenant else ""
        roles = headers.get(self.roles.lower(), "") if self.roles else ""
        return Caller(tenant or DEFAULT_TENANT, frozenset(role.strip() for role in roles.split(",") if role.strip()))
