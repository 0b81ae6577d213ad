"""Who a request is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accounts.keys import Key

DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Caller:
    """The tenant a request belongs to, and the roles of whoever sent it."""

    tenant: str = DEFAULT_TENANT
    roles: frozenset[str] = frozenset()
    key: Key | None = None
    """The API key that was sent; None for who came through a trusted proxy, or without a name."""

    def may_use(self, route: str, adapters: Iterable[str] = ()) -> bool:
        """Whether the key is for this public model name, and for every adapter, by name, that may answer under it."""
        if self.key is None:
            return True
        return (not self.key.routes or route in self.key.routes) and (
            not self.key.adapters or self.key.adapters.issuperset(adapters)
        )

    def fits(self, tenant: str | None, role: str | None) -> bool:
        """Whether this caller is of that tenant and has that role; None is any."""
        return tenant in {None, self.tenant} and (role is None or role in self.roles)


ANYBODY = Caller()


@dataclass(frozen=True)
class CallerHeaders:
    """The headers in which a trusted proxy names tenant and roles; None where it does not."""

    tenant: str | None = None
    roles: str | None = None

    def sent(self, headers: Mapping[str, str]) -> bool:
        """Whether the proxy named anybody; `headers` has names in lower case."""
        return any(name is not None and headers.get(name.lower(), "").strip() for name in (self.tenant, self.roles))

    def read(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller; `headers` has names in lower case. Who has no such header belongs to the default tenant."""
        tenant = headers.get(self.tenant.lower(), "").strip() if self.tenant else ""
        roles = headers.get(self.roles.lower(), "") if self.roles else ""
        return Caller(tenant or DEFAULT_TENANT, frozenset(role.strip() for role in roles.split(",") if role.strip()))
