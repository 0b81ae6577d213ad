"""What a bundle without mistakes still wants of the machine it will be served on, or does in vain.

None of it is a mistake of the file: `ekiben check` prints it as warnings. What a box cannot start without, it refuses itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from services.bundle import PASSWORD, Bundle, Problem
from services.settings import Settings
from services.terms import Price

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def advise(bundle: Bundle, settings: Settings, environment: Callable[[str], str | None]) -> list[Problem]:
    """Return what should be known before a bundle is served here; `environment` returns a variable's value, or None."""
    return [
        *_unset(bundle, environment),
        *_audit(bundle, settings),
        *_budgets(bundle),
    ]


def _unset(bundle: Bundle, environment: Callable[[str], str | None]) -> list[Problem]:
    named = [
        (("upstreams", name, "key"), found[1])
        for name, upstream in bundle.upstreams.items()
        if upstream.key and (found := VARIABLE.fullmatch(upstream.key))
    ]
    named += [
        (("collections", name, "store"), found[1])
        for name, collection in bundle.collections.items()
        if collection.store and (found := PASSWORD.search(collection.store))
    ]
    return [
        Problem(where, f"the variable {variable} is not set here; a box does not start without it")
        for where, variable in named
        if environment(variable) is None
    ]


def _audit(bundle: Bundle, settings: Settings) -> list[Problem]:
    problems: list[Problem] = []
    if bundle.audit.enabled and settings.audit_key is None:
        message = "EKIBEN_AUDIT_KEY is not set here: the trail is hashed, and who can write its folder can forge it; set it"
        problems.append(Problem(("audit", "enabled"), message))
    if bundle.audit.texts == "encrypted" and settings.audit_text_key is None:
        message = "EKIBEN_AUDIT_TEXT_KEY is not set here, and no text is kept without it; set it"
        problems.append(Problem(("audit", "texts"), message))
    return problems


def _budgets(bundle: Bundle) -> list[Problem]:
    prices = [
        price
        for route in bundle.routes.values()
        for price in (route.price, *(target.price for target in (route.targets.of if route.targets else ())))
    ]
    if any(price is not None and price != Price() for price in prices):
        return []
    return [
        Problem(("tenants", name, "budget"), "no route has a price, so nothing is ever spent of it; give routes a price")
        for name, tenant in bundle.tenants.items()
        if tenant.budget.day is not None or tenant.budget.month is not None
    ]
