"""What a request takes of its caller, without servers: limits, budgets and the trail around a block."""

from dataclasses import replace
from decimal import Decimal

import pytest

from accounts.audit import AuditFailed
from accounts.budgets import BudgetExceeded as Spent
from accounts.budgets import Subject
from accounts.database import DatabaseUnavailable
from accounts.keys import Key
from accounts.rates import Rates
from services import terms
from services.accounting import Accounting
from services.caller import Caller
from services.errors import AuditUnavailable, BudgetExceeded, BudgetUnavailable, EngineUnavailable, RateLimited
from services.protocol import ChatRequest
from services.telemetry import Record

TENANTS = {
    "*": terms.Tenant(limits=terms.Limits(requests_per_minute=2)),
    "acme": terms.Tenant(budget=terms.Budget(day=Decimal(1))),
}
USAGE = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


class FakeLedger:
    def __init__(self):
        self.reserved, self.settled, self.released, self.error = [], [], 0, None

    async def reserve(self, budgets, micros):
        if self.error:
            raise self.error
        self.reserved.append((budgets, micros))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.released += 1

    def settle(self, spend):
        self.settled.append(spend)


class FakeAudit:
    def __init__(self):
        self.entries, self.error = [], None

    def check(self):
        if self.error:
            raise self.error

    def append(self, entry, texts=None):
        self.check()
        self.entries.append((entry, texts))


@pytest.fixture
def route(pipeline):
    request = ChatRequest(model="free", messages=[{"role": "user", "content": "hi"}])
    return replace(pipeline.route(request), price=terms.Price(prompt=Decimal(2), completion=Decimal(3)))


@pytest.fixture
def made(pipeline):
    return Accounting(pipeline.telemetry, Rates(), FakeLedger(), FakeAudit(), TENANTS)


def of(route, tenant="acme", key=None):
    return replace(route, caller=Caller(tenant, frozenset(), key))


async def test_what_was_used_is_settled(made, route):
    record = Record("free")
    async with made.request(of(route), record, tokens=100, answer_tokens=10):
        record.begin({"messages": []}).event(USAGE)
        record.begin({"messages": []}, terms.Price(prompt=Decimal(7))).event(USAGE)

    [(budgets, reserved)] = made.ledger.reserved
    assert ([*budgets], reserved) == ([Subject("tenant", "acme")], 100 * 2 + 10 * 3)
    [spend] = made.ledger.settled
    assert (spend.tenant, spend.route, spend.prompt_tokens, spend.completion_tokens) == ("acme", "free", 20, 10)
    assert spend.micros == record.micros == (10 * 2 + 5 * 3) + 10 * 7


async def test_it_is_settled_when_the_request_fails(made, route):
    record = Record("free")

    async def lost():
        async with made.request(of(route), record, tokens=1, answer_tokens=1):
            record.begin({"prompt": "x" * 30}).event({"choices": [{"text": "a"}]})
            raise EngineUnavailable("lost")

    with pytest.raises(EngineUnavailable):
        await lost()

    assert [(spend.prompt_tokens, spend.completion_tokens) for spend in made.ledger.settled] == [(10, 1)]
    assert made.ledger.released == 1


async def test_the_dearest_target_is_reserved(made, route):
    targets = terms.Targets(of=(terms.Target(), terms.Target(upstream="far", model="m", price=terms.Price(prompt=Decimal(50)))))
    async with made.request(of(replace(route, targets=targets)), Record("free"), tokens=10, answer_tokens=0):
        pass

    assert made.ledger.reserved[0][1] == 500


async def test_a_limit_of_other_tenants_is_each_ones_own(made, route, registry):
    for _ in range(2):
        async with made.request(of(route, "one"), Record("free"), tokens=1, answer_tokens=1):
            pass
    with pytest.raises(RateLimited) as caught:
        async with made.request(of(route, "one"), Record("free"), tokens=1, answer_tokens=1):
            pytest.fail("it was let in")
    async with made.request(of(route, "two"), record := Record("free"), tokens=1, answer_tokens=1):
        pass

    assert caught.value.headers()["x-ratelimit-remaining-requests"] == "0"
    assert record.headers["x-ratelimit-remaining-requests"] == "1"
    assert registry.get_sample_value("llm_rate_limited_total", {"subject": "tenant", "limit": "requests"}) == 1


async def test_a_keys_limits_and_budget_count_beside_its_tenants(made, route):
    key = Key(id="0" * 16, name="a", owner="b", tenant="acme", created_at=0, budget_month=2.5, concurrency=1)
    asked = of(route, key=key)
    async with made.request(asked, Record("free"), tokens=1, answer_tokens=1):
        with pytest.raises(RateLimited, match="requests at once"):
            async with made.request(asked, Record("free"), tokens=1, answer_tokens=1):
                pytest.fail("it was let in")

    budgets = made.ledger.reserved[0][0]
    assert {subject.kind: (budget.day, budget.month) for subject, budget in budgets.items()} == {
        "tenant": (1_000_000, None), "key": (None, 2_500_000),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Spent(Subject("tenant", "acme"), "2026-01", 1, 2), BudgetExceeded),
        (DatabaseUnavailable("postgresql://secret"), BudgetUnavailable),
    ],
)
async def test_no_budget_no_answer(made, route, error, told):
    made.ledger.error = error
    with pytest.raises(told) as caught:
        async with made.request(of(route), Record("free"), tokens=1, answer_tokens=1):
            pytest.fail("it was let in")

    assert "secret" not in caught.value.message
    assert made.ledger.settled == []


async def test_no_trail_no_answer(made, route, registry):
    made.audit.error = AuditFailed("/secret/folder")
    with pytest.raises(AuditUnavailable) as caught:
        async with made.request(of(route), Record("free"), tokens=1, answer_tokens=1):
            pytest.fail("it was let in")
    made.write(route, Record("free"))  # is told, and ends nothing

    assert "folder" not in caught.value.message
    assert registry.get_sample_value("llm_degraded", {"store": "audit"}) == 1


@pytest.mark.parametrize(
    ("texts", "plain", "sealed"), [("none", False, False), ("masked", True, False), ("encrypted", False, True)]
)
def test_texts_are_written_as_the_bundle_says(made, route, texts, plain, sealed):
    made.texts = texts
    made.write(of(route), Record("free", id="r1", action="chat", status="ok", texts={"question": "q", "answer": "a"}))

    [(entry, handed)] = made.audit.entries
    assert (entry.id, entry.tenant, entry.outcome, entry.versions["model"]) == ("r1", "acme", "ok", "tiny:1")
    assert ("question" in entry.more, handed is not None) == (plain, sealed)
