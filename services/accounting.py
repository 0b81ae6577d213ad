"""What a request takes of its caller: held before it is answered, settled and written down however it ends.

Limits first, which cost nothing; then what is still in the budgets. Tokens and cost are estimated at the start and settled by the
engine's own count. The line of the audit trail is written before the last byte of an answer leaves.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from accounts import budgets, prices
from accounts.audit import AuditFailed, AuditLog, Entry, Outcome
from accounts.budgets import Budget
from accounts.database import DatabaseUnavailable
from accounts.ledger import Ledger, Spend
from accounts.prices import Price
from accounts.rates import Hold, RateExceeded, Rates
from accounts.windows import Limits, Subject
from services import terms
from services.errors import AuditUnavailable, BudgetExceeded, BudgetUnavailable, RateLimited
from services.telemetry import log

if TYPE_CHECKING:
    from services.caller import Caller
    from services.routing import Route
    from services.telemetry import Record, Telemetry

OTHERS = "*"
"""The terms of tenants that the bundle does not name."""


@dataclass
class Accounting:
    """The limits, budgets and the trail of a box; what is None is not kept."""

    telemetry: Telemetry
    rates: Rates
    ledger: Ledger | None = None
    audit: AuditLog | None = None
    tenants: Mapping[str, terms.Tenant] = field(default_factory=dict)
    soft: float = 0.8
    """Share of a budget at which somebody is told."""
    texts: str = "none"
    """Which texts the trail has: none, masked, encrypted."""

    @asynccontextmanager
    async def request(self, route: Route, record: Record, *, tokens: int, answer_tokens: int) -> AsyncGenerator[None]:
        """Hold a request of so many tokens of prompt and of answer, by estimate; raises EkibenError.

        What it took is settled by the record when the block is left.
        """
        self.check_audit()
        subjects = [Subject("route", route.name, _limits(route.limits)), *self._callers(route.caller)]
        async with self._held(subjects, tokens + answer_tokens) as hold:
            record.headers |= hold.headers()
            try:
                async with self._reserved(route, record, tokens, answer_tokens):
                    yield
            finally:
                hold.settle(record.prompt_tokens + record.completion_tokens)

    @asynccontextmanager
    async def embedding(self, caller: Caller, tokens: int) -> AsyncGenerator[Hold]:
        """Hold a request for vectors of so many tokens, by estimate, within the limits of tenant and key; raises RateLimited.

        Vectors cost nothing. `settle` of what is yielded takes the tokens that there were.
        """
        async with self._held(self._callers(caller), tokens) as hold:
            yield hold

    @asynccontextmanager
    async def _held(self, subjects: list[Subject], tokens: int) -> AsyncGenerator[Hold]:
        limited = [subject for subject in subjects if subject.limits != Limits()]
        try:
            async with self.rates.hold(limited, tokens=tokens) as hold:
                yield hold
        except RateExceeded as error:
            self.telemetry.limited(error.subject_kind, error.limit)
            raise RateLimited(str(error), retry_after=error.retry_after_seconds, limits=error.headers()) from error

    def check_audit(self) -> None:
        """Raise AuditUnavailable where the trail cannot be written now."""
        if self.audit is None:
            return
        try:
            self.audit.check()
        except AuditFailed as error:
            self.telemetry.degraded("audit", away=True)
            raise AuditUnavailable("The audit trail cannot be written now, so nothing is answered; try again later.") from error
        self.telemetry.degraded("audit", away=False)

    @asynccontextmanager
    async def _reserved(self, route: Route, record: Record, tokens: int, answer_tokens: int) -> AsyncGenerator[None]:
        if self.ledger is None:
            try:
                yield
            finally:
                record.micros = _cost(route, record)
            return
        spends = self._budgets(route.caller)
        try:
            reservation = await self.ledger.reserve(spends, _dearest(route, tokens, answer_tokens))
        except budgets.BudgetExceeded as error:
            self.telemetry.overspent(error.subject.kind)
            resets = datetime.fromtimestamp(error.resets_at, UTC)
            message = f"The budget of this {error.subject.kind} is spent; it begins anew at {resets:%Y-%m-%dT%H:%MZ}."
            raise BudgetExceeded(message, retry_after=max(1, round(error.resets_at - time.time()))) from error
        except DatabaseUnavailable as error:
            raise BudgetUnavailable("What was spent is not known now, so nothing is answered; try again later.") from error
        with reservation:
            try:
                yield
            finally:
                record.micros = _cost(route, record)
                reservation.settle(
                    Spend(
                        tenant=route.caller.tenant, key=_key(route.caller), route=route.name,
                        prompt_tokens=record.prompt_tokens, cached_tokens=record.cached_tokens,
                        completion_tokens=record.completion_tokens, micros=record.micros,
                    )
                )  # fmt: skip

    def write(self, route: Route, record: Record) -> None:
        """Write the line of a request that has ended; what cannot be written now is kept, and nothing more is let in."""
        shown = {"target": record.target, "cached": record.cached, **self._kept(record)}
        self._append(
            Entry(
                id=record.id, action=record.action, tenant=route.caller.tenant, key=_key(route.caller),
                route=route.name, versions=route.versions(), outcome=record.status,
                verdicts=[finding.as_dict() for finding in record.findings], prompt_tokens=record.prompt_tokens,
                cached_tokens=record.cached_tokens, completion_tokens=record.completion_tokens, micros=record.micros,
                seconds=record.seconds, first_token_seconds=record.first_token_seconds,
                more={name: value for name, value in shown.items() if value is not None},
            ),
            record.texts if self.texts == "encrypted" and record.texts else None,
        )  # fmt: skip

    def note(
        self, identity: str, action: str, caller: Caller | None, *, outcome: Outcome, seconds: float, prompt_tokens: int = 0,
        more: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Write the line of a request that no route answered: it was refused before, or changed documents, or was for vectors.

        `caller` is None for who was not let in.
        """
        self._append(
            Entry(
                id=identity, action=action, tenant=caller.tenant if caller else "", key=_key(caller) if caller else "",
                outcome=outcome, seconds=seconds, prompt_tokens=prompt_tokens, more=more,
            )
        )  # fmt: skip

    def _append(self, entry: Entry, texts: Mapping[str, str] | None = None) -> None:
        if self.audit is None:
            return
        try:
            self.audit.append(entry, texts)
        except AuditFailed as error:
            self.telemetry.degraded("audit", away=True)
            log.error("audit", message=str(error))

    def _kept(self, record: Record) -> dict[str, Any]:
        return dict(record.texts) if self.texts == "masked" else {}

    def _callers(self, caller: Caller) -> list[Subject]:
        """Whose limits hold for a caller on every route."""
        subjects: list[Subject] = []
        if (tenant := self._tenant(caller)) is not None:
            subjects.append(Subject("tenant", caller.tenant, _limits(tenant.limits)))
        if caller.key is not None:
            key = caller.key
            subjects.append(Subject("key", key.id, Limits(key.requests_per_minute, key.tokens_per_minute, key.concurrency)))
        return subjects

    def _budgets(self, caller: Caller) -> dict[budgets.Subject, Budget]:
        found: dict[budgets.Subject, Budget] = {}
        if (tenant := self._tenant(caller)) is not None:
            found[budgets.Subject("tenant", caller.tenant)] = self._budget(tenant.budget.day, tenant.budget.month)
        if caller.key is not None:
            found[budgets.Subject("key", caller.key.id)] = self._budget(caller.key.budget_day, caller.key.budget_month)
        return {subject: budget for subject, budget in found.items() if (budget.day, budget.month) != (None, None)}

    def _budget(self, day: Any, month: Any) -> Budget:
        limits = (None if amount is None else prices.micros_of(Decimal(str(amount))) for amount in (day, month))
        return Budget(*limits, soft=self.soft)

    def _tenant(self, caller: Caller) -> terms.Tenant | None:
        return self.tenants.get(caller.tenant, self.tenants.get(OTHERS))


def _key(caller: Caller) -> str:
    return caller.key.id if caller.key else ""


def _limits(told: terms.Limits) -> Limits:
    return Limits(told.requests_per_minute, told.tokens_per_minute, told.concurrency)


def _cost(route: Route, record: Record) -> int:
    """What the calls of a request cost, in micros, each at its target's price."""
    counts = ((_price(call.price or route.price), call.tokens) for call in record.calls)
    return sum(price.micros(tokens.prompt, tokens.completion, tokens.cached) for price, tokens in counts)


def _dearest(route: Route, tokens: int, answer_tokens: int) -> int:
    """What a request may cost, in micros, whichever target answers."""
    told = [target.price or route.price for target in route.targets.of] if route.targets else [route.price]
    return max(_price(price).micros(tokens, answer_tokens) for price in told)


def _price(told: terms.Price) -> Price:
    return Price(told.prompt, told.completion, told.cached)
