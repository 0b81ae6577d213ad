"""Spend against budgets, on a SQLite file."""

import asyncio
from datetime import UTC, datetime

import pytest

from accounts import ledger as module
from accounts.budgets import Budget, BudgetExceeded, Subject
from accounts.database import DatabaseUnavailable, open_database
from accounts.ledger import Ledger, Spend
from accounts.spend import Account, Sums, apply, usage

ACME, KEY = Subject("tenant", "acme"), Subject("key", "k1")
NOON = datetime(2026, 3, 31, 12, tzinfo=UTC).timestamp()
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)


@pytest.fixture
async def engine(tmp_path):
    async with open_database(f"sqlite:///{tmp_path / 'spend.db'}") as opened:
        yield opened


class World:
    """A clock, a database that goes away, and what was told."""

    def __init__(self, engine):
        self.engine, self.now, self.away = engine, NOON, False
        self.alerts, self.troubles = [], []

    async def database(self):
        if self.away:
            raise DatabaseUnavailable("away")
        return self.engine

    def ledger(self, **more):
        return Ledger(self.database, self.alerts.append, self.troubles.append, clock=lambda: self.now, **more)


@pytest.fixture
def world(engine):
    return World(engine)


def cost(micros, tenant="acme", key="k1", route="handbook"):
    return Spend(tenant=tenant, key=key, route=route, prompt_tokens=10, completion_tokens=2, micros=micros)


async def test_what_was_spent_is_summed_by_day_tenant_key_and_route(world):
    ledger = world.ledger()
    for spend in (cost(5), cost(7), cost(1, key="k2"), cost(2, route="plain")):
        ledger.record(spend)
    await ledger.flush()
    world.now += 86_400  # the first of April
    ledger.record(cost(100))
    await ledger.flush()
    rows = await usage(world.engine, ["day", "key", "route"])

    assert [(row["day"], row["key"], row["route"], row["requests"], row["micros"]) for row in rows] == [
        ("2026-03-31", "k1", "handbook", 2, 12), ("2026-03-31", "k1", "plain", 1, 2), ("2026-03-31", "k2", "handbook", 1, 1),
        ("2026-04-01", "k1", "handbook", 1, 100),
    ]  # fmt: skip
    assert [(row["month"], row["prompt_tokens"], row["micros"]) for row in await usage(world.engine, ["month"])] == [
        ("2026-03", 40, 15), ("2026-04", 10, 100),
    ]  # fmt: skip
    assert (await usage(world.engine, [], since="2026-04-01"))[0]["micros"] == 100
    assert (await usage(world.engine, [], until="2026-03-31"))[0]["micros"] == 15
    with pytest.raises(ValueError, match="none of key"):
        await usage(world.engine, ["day; DROP TABLE spend"])


async def test_own_spend_stops_the_next_request_before_it_is_written(world):
    ledger, budgets = world.ledger(), {ACME: Budget(day=100)}
    (await ledger.reserve(budgets, 60)).settle(cost(90))
    with pytest.raises(BudgetExceeded) as caught:
        await ledger.reserve(budgets, 20)
    (await ledger.reserve(budgets, 10)).release()

    assert (caught.value.subject, caught.value.period, caught.value.limit, caught.value.spent) == (ACME, "2026-03-31", 100, 90)


async def test_reservations_of_requests_under_way_count(world):
    """Two hundred at once, of which the budget has room for ten: no more than ten get through."""
    ledger, budgets = world.ledger(), {ACME: Budget(month=100), KEY: Budget(day=1000)}

    async def request():
        try:
            hold = await ledger.reserve(budgets, 10)
        except BudgetExceeded:
            return 0
        await asyncio.sleep(0)
        hold.settle(cost(10))
        return 10

    spent = sum(await asyncio.gather(*(request() for _ in range(200))))
    await ledger.flush()

    assert spent == 100
    assert (await usage(world.engine, []))[0]["micros"] == 100


async def test_one_budget_that_refuses_takes_nothing_from_the_others(world):
    ledger = world.ledger()
    with pytest.raises(BudgetExceeded):
        await ledger.reserve({ACME: Budget(day=100), KEY: Budget(day=5)}, 50)

    (await ledger.reserve({ACME: Budget(day=100)}, 100)).release()


async def test_what_is_given_back_is_given_back_once(world):
    ledger, budgets = world.ledger(), {ACME: Budget(day=100)}
    with await ledger.reserve(budgets, 80) as hold:
        hold.settle(cost(30))
        hold.settle(cost(30))
        hold.release()

    (await ledger.reserve(budgets, 70)).release()
    with pytest.raises(BudgetExceeded):
        await ledger.reserve(budgets, 71)


async def test_a_request_that_breaks_gives_its_reservation_back(world):
    ledger, budgets = world.ledger(), {ACME: Budget(day=100)}
    hold = await ledger.reserve(budgets, 100)
    with pytest.raises(RuntimeError), hold:
        raise RuntimeError

    await ledger.check(budgets)


async def test_who_held_a_reservation_for_long_may_still_settle_it(world, monkeypatch):
    """What was reserved was nothing, and the subject is forgotten meanwhile."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0)
    ledger, budgets = world.ledger(refresh_seconds=0), {KEY: Budget(day=100)}
    hold = await ledger.reserve(budgets, 0)
    await ledger._turn()
    assert ledger._views == {}
    hold.settle(cost(60))

    with pytest.raises(BudgetExceeded) as caught:
        await ledger.reserve(budgets, 50)
    assert (caught.value.spent, caught.value.asked) == (60, 50)


async def test_a_spent_budget_refuses_even_what_costs_nothing(world):
    ledger, budgets = world.ledger(), {ACME: Budget(day=100)}
    (await ledger.reserve(budgets, 1)).settle(cost(100))

    with pytest.raises(BudgetExceeded):
        await ledger.check(budgets)


async def test_the_day_begins_anew_at_midnight_and_the_month_does_not(world):
    world.now -= 86_400
    ledger, day, month = world.ledger(), {ACME: Budget(day=100)}, {ACME: Budget(month=100)}
    (await ledger.reserve(day, 0)).settle(cost(100))
    with pytest.raises(BudgetExceeded):
        await ledger.check(day)
    world.now += 86_400
    await ledger.check(day)
    with pytest.raises(BudgetExceeded):
        await ledger.check(month)
    world.now += 86_400

    await ledger.check(month)


async def test_another_replica_counts_once_it_has_written(world):
    one, other, budgets = world.ledger(), world.ledger(stale_seconds=-1), {ACME: Budget(day=100)}
    await other.check(budgets)
    one.record(cost(100))
    await one.flush()

    with pytest.raises(BudgetExceeded):
        await other.check(budgets)


async def test_what_is_written_counts_once(world):
    """Own spend moves from memory to the database, and is never in both."""
    ledger, budgets = world.ledger(stale_seconds=-1), {ACME: Budget(day=100)}
    for _ in range(5):
        (await ledger.reserve(budgets, 20)).settle(cost(20))
        await ledger.flush()
    assert (await usage(world.engine, []))[0]["micros"] == 100

    with pytest.raises(BudgetExceeded) as caught:
        await ledger.reserve(budgets, 1)
    assert caught.value.spent == 100


async def test_what_costs_nothing_leaves_the_books_of_what_does_in_order(world):
    """A batch of a tenant with a route that costs and one that does not; and a free request while another is sent."""
    ledger, budgets = world.ledger(stale_seconds=-1), {ACME: Budget(day=100)}
    ledger.record(cost(60))
    ledger.record(cost(0, route="free"))
    await ledger.flush()
    ledger.record(cost(0, key="k2", route="free"))
    ledger.record(cost(0, route="free"))
    await ledger.flush()

    (await ledger.reserve(budgets, 40)).release()
    with pytest.raises(BudgetExceeded) as caught:
        await ledger.reserve(budgets, 41)
    assert caught.value.spent == 60
    assert world.troubles == []


async def test_a_batch_that_is_sent_again_counts_once(world):
    rows = {Account("2026-03-31", "acme", "k1", "handbook"): Sums(requests=1, micros=7)}
    for _ in range(3):
        await apply(world.engine, "batch", rows, NOON)
    await apply(world.engine, "another", rows, NOON)

    assert (await usage(world.engine, []))[0]["micros"] == 14


async def test_an_answer_of_the_database_that_is_lost_does_not_count_twice(world, monkeypatch):
    ledger, real = world.ledger(), module.apply

    async def lost(engine, identity, rows, now):
        await real(engine, identity, rows, now)
        raise DatabaseUnavailable("the connection broke while it committed")

    ledger.record(cost(7))
    with monkeypatch.context() as patch:
        patch.setattr(module, "apply", lost)
        with pytest.raises(DatabaseUnavailable):
            await ledger.flush()
    ledger.record(cost(1))
    await ledger.flush()
    await ledger.flush()

    assert (await usage(world.engine, []))[0] | {"micros": 8, "requests": 2} == (await usage(world.engine, []))[0]


async def test_while_the_database_is_away_budgets_refuse_and_spend_is_kept(world):
    ledger, budgets = world.ledger(stale_seconds=-1), {ACME: Budget(day=100)}
    hold = await ledger.reserve(budgets, 10)
    world.away = True
    hold.settle(cost(10))
    with pytest.raises(DatabaseUnavailable):
        await ledger.reserve(budgets, 10)
    with pytest.raises(DatabaseUnavailable):
        await ledger.flush()
    (await ledger.reserve({}, 10)).settle(cost(1))
    world.away = False
    await ledger.flush()
    await ledger.flush()

    assert (await usage(world.engine, []))[0]["micros"] == 11
    await ledger.check(budgets)


async def test_a_database_that_hangs_is_not_waited_for_by_everybody(world, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 60)
    ledger, asked = world.ledger(timeout_seconds=0.05), []

    async def hang():
        asked.append(1)
        await asyncio.Event().wait()

    ledger._database = hang
    found = await asyncio.gather(*(ledger.check({ACME: Budget(day=1)}) for _ in range(50)), return_exceptions=True)

    assert [type(error) for error in found] == [DatabaseUnavailable] * 50
    assert len(asked) == 1


async def test_spend_that_finds_no_room_is_told(world, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    ledger = world.ledger()
    for number in range(4):
        ledger.record(cost(1, tenant=f"t{number}"))

    assert ledger.lost == 2
    assert len(world.troubles) == 1


async def test_names_that_a_database_would_refuse_do_not_hold_up_the_batch(world):
    ledger = world.ledger()
    ledger.record(cost(1, tenant="a\0b" + "x" * 200, key="k" * 40, route="\ud800"))
    await ledger.flush()
    [row] = await usage(world.engine, ["tenant", "key", "route"])

    assert row["tenant"] == ("ab" + "x" * 200)[:128]
    assert row["key"] == "k" * 16


async def until(true):
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  what runs in the background tells nobody
            await asyncio.sleep(0.01)


async def test_alerts_are_told_once_a_period_among_all_replicas(world):
    budgets = {ACME: Budget(day=100, month=1000)}
    one, other = (world.ledger(flush_seconds=0.01, refresh_seconds=0.01) for _ in range(2))
    async with one.running(), other.running():
        (await one.reserve(budgets, 0)).settle(cost(79))
        await asyncio.sleep(0.05)
        assert world.alerts == []
        (await one.reserve(budgets, 0)).settle(cost(2))
        await until(lambda: len(world.alerts) == 1)
        (await other.reserve(budgets, 0)).settle(cost(0))
        (await one.reserve(budgets, 0)).settle(cost(30))
        with pytest.raises(BudgetExceeded):
            await one.reserve(budgets, 0)
        await until(lambda: len(world.alerts) == 2)
        await asyncio.sleep(0.05)

    assert [(alert.subject, alert.period, alert.level) for alert in world.alerts] == [
        (ACME, "2026-03-31", "soft"), (ACME, "2026-03-31", "hard"),
    ]  # fmt: skip
    assert world.troubles == []


async def test_what_runs_writes_by_itself_and_at_its_end(world):
    async with world.ledger(flush_seconds=0.01).running() as ledger:
        ledger.record(cost(3))
        await until(lambda: not ledger._open and ledger._sending is None)
        assert (await usage(world.engine, []))[0]["micros"] == 3
    async with world.ledger(flush_seconds=60).running() as ledger:
        ledger.record(cost(4))

    assert (await usage(world.engine, []))[0]["micros"] == 7


async def test_what_came_behind_a_batch_under_way_is_written_at_the_end_too(world, monkeypatch):
    real, begun = module.apply, asyncio.Event()

    async def slow(*arguments):
        begun.set()
        await asyncio.sleep(0.05)
        await real(*arguments)

    monkeypatch.setattr(module, "apply", slow)
    async with world.ledger(flush_seconds=0.01).running() as ledger:
        ledger.record(cost(3))
        await begun.wait()
        ledger.record(cost(4))

    assert (await usage(world.engine, []))[0]["micros"] == 7


async def test_a_callback_that_fails_does_not_end_the_writing(world):
    def broken(alert):
        raise RuntimeError("no webhook")

    ledger = Ledger(world.database, broken, world.troubles.append, flush_seconds=0.01, clock=lambda: world.now)
    async with ledger.running():
        (await ledger.reserve({ACME: Budget(day=1)}, 0)).settle(cost(5))
        await until(lambda: world.troubles)
        ledger.record(cost(6))
        await until(lambda: not ledger._open and ledger._sending is None)

    assert world.troubles == ["RuntimeError: no webhook"]
    assert (await usage(world.engine, []))[0]["micros"] == 11
