"""`ekiben audit` and `ekiben usage`, as a user runs them."""

import asyncio
import csv
import io
import json
import os  # noqa: TID251  a state of one's own for the commands
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accounts.audit import AuditLog, Entry
from accounts.chain import chain_files, derived
from accounts.database import open_database
from accounts.spend import Account, Sums, apply

ROOT = Path(__file__).resolve().parents[2]
SECRET, TEXTS = "a secret of sixteen", "a secret for the texts"


@pytest.fixture
def ekiben(tmp_path):
    def run(*arguments, **more):
        environment = {**os.environ, "EKIBEN_STATE_DIR": str(tmp_path), "EKIBEN_AUDIT_KEY": SECRET, "COLUMNS": "200", **more}
        command = [sys.executable, "-m", "services.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)

    return run


@pytest.fixture
def trail(tmp_path):
    """Four requests in files of one or two lines each."""
    folder = tmp_path / "ekiben" / "audit"
    with AuditLog(folder, derived(SECRET, "chain"), derived(TEXTS, "texts"), max_bytes=700) as log:
        for number, tenant in enumerate(["acme", "=beta\x1b[2J", "acme", "acme"]):
            entry = Entry(
                id=f"r{number}", action="chat", tenant=tenant, key="k1", route="handbook",
                outcome="refused" if number == 2 else "ok", verdicts=[{"detector": "secrets", "action": "block"}], micros=1500,
            )  # fmt: skip
            log.append(entry, {"question": f"question {number}"})
    return folder


def test_a_trail_that_holds(ekiben, trail):
    done = ekiben("audit", "verify")

    assert done.returncode == 0, done.stderr
    assert "4 requests; sealed with a key" in done.stdout
    assert done.stdout.splitlines()[-1] == "ok"


def test_a_broken_trail_names_file_and_line_and_fails(ekiben, trail):
    path = chain_files(trail)[1].path
    path.write_bytes(path.read_bytes().replace(b'"micros":1500', b'"micros":1000', 1))
    line = next(n for n, raw in enumerate(path.read_bytes().splitlines(), 1) if b'"micros":1000' in raw)
    done = ekiben("audit", "verify")
    told = json.loads(ekiben("audit", "verify", "--json").stdout)

    assert done.returncode == 1
    assert f"{path.name}:{line}: altered: its seal does not hold" in done.stderr
    assert [(one["file"], one["line"], one["what"]) for one in told["problems"]] == [(path.name, line, "altered")]


def test_a_trail_that_was_put_back_fails_against_an_earlier_verification(ekiben, trail, tmp_path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(ekiben("audit", "verify", "--json").stdout)
    assert ekiben("audit", "verify", "--against", earlier).returncode == 0
    for path in trail.iterdir():
        path.unlink()
    done = ekiben("audit", "verify", "--against", earlier)

    assert done.returncode == 1
    assert "the whole chain" in done.stderr
    assert ekiben("audit", "verify", "--against", ROOT / "README.md").returncode == 1


def test_without_the_key_nothing_is_called_right(ekiben, trail):
    done = ekiben("audit", "verify", EKIBEN_AUDIT_KEY="")
    wrong = ekiben("audit", "verify", EKIBEN_AUDIT_KEY="another secret of sixteen")

    assert done.returncode != 0
    assert wrong.returncode == 1
    assert "another key" in wrong.stderr


def test_tail_prints_readable_lines_by_filter(ekiben, trail):
    assert [line.split()[-2] for line in ekiben("audit", "tail", "-n", 2).stdout.splitlines()] == ["r2", "r3"]
    [line] = ekiben("audit", "tail", "--tenant", "acme", "--outcome", "refused").stdout.splitlines()
    everything = ekiben("audit", "tail").stdout

    assert "refused   handbook acme/ek_k1 0+0 tokens 0.001500 0.000s r2 [secrets:block]" in line
    assert "\x1b" not in everything
    assert [json.loads(line)["id"] for line in ekiben("audit", "tail", "-n", 1, "--json").stdout.splitlines()] == ["r3"]


def test_tail_follows(trail, tmp_path):
    environment = {**os.environ, "EKIBEN_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "services.cli", "audit", "tail", "-n", "1", "-f", "--folder", str(trail)]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert "r3" in following.stdout.readline()
        time.sleep(0.5)
        with AuditLog(trail, derived(SECRET, "chain")) as log:
            log.append(Entry(id="new", action="chat", tenant="acme"))
            assert "new" in following.stdout.readline()
    finally:
        following.terminate()
        following.wait()
        following.stdout.close()


def test_export_to_jsonl_and_csv(ekiben, trail):
    lines = [json.loads(line) for line in ekiben("audit", "export").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(ekiben("audit", "export", "--format", "csv", "--tenant", "=beta\x1b[2J").stdout)))
    opened = ekiben("audit", "export", "--texts", EKIBEN_AUDIT_TEXT_KEY=TEXTS)
    wrong = ekiben("audit", "export", "--texts", EKIBEN_AUDIT_TEXT_KEY="another secret for texts")

    assert [line["id"] for line in lines] == ["r0", "r1", "r2", "r3"]
    assert "question" not in json.dumps(lines)
    assert [(row["id"], row["tenant"][:6], row["micros"]) for row in rows] == [("r1", "'=beta", "1500")]
    assert json.loads(opened.stdout.splitlines()[1])["texts"] == {"question": "question 1"}
    assert wrong.returncode == 1
    assert "another key" in wrong.stderr
    assert ekiben("audit", "export", "--since", "2999-01-01").stdout == ""
    assert ekiben("audit", "export", "--until", "soon").returncode == 1


def test_prune_removes_what_is_old(ekiben, trail):
    first = chain_files(trail)[0].path
    os.utime(first, (time.time() - 10 * 86_400,) * 2)
    done = ekiben("audit", "prune", "--days", 9)

    assert done.returncode == 0, done.stderr
    assert not first.exists()
    assert ekiben("audit", "verify").returncode == 0


def test_without_a_trail_the_message_says_where_it_was_looked_for(ekiben, tmp_path):
    done = ekiben("audit", "verify")

    assert done.returncode == 1
    assert str(tmp_path / "ekiben" / "audit") in done.stderr


def test_usage_prints_a_table_csv_and_json(ekiben, tmp_path):
    async def fill():
        async with open_database(f"sqlite:///{tmp_path / 'ekiben.db'}") as engine:
            rows = {
                Account("2026-03-31", "acme", "k1", "handbook"): Sums(2, 1200, 200, 30, 1_500_000),
                Account("2026-04-01", "=beta", "k2", "handbook"): Sums(1, 10, 0, 3, 7),
            }
            await apply(engine, "one", rows, 0)

    asyncio.run(fill())
    table = ekiben("usage", "--by", "tenant,day")
    [row] = csv.DictReader(io.StringIO(ekiben("usage", "--by", "tenant", "--since", "2026-04", "--csv").stdout))
    told = json.loads(ekiben("usage", "--by", "month", "--until", "2026-03", "--json").stdout)

    assert table.stdout.splitlines()[1].split() == ["=beta", "2026-04-01", "1", "10", "0", "3", "0.000007"]
    assert table.stdout.splitlines()[2].split() == ["acme", "2026-03-31", "2", "1,200", "200", "30", "1.500000"]
    assert (row["tenant"], row["micros"], row["cost"]) == ("'=beta", "7", "0.000007")
    assert [(one["month"], one["requests"], one["micros"]) for one in told["rows"]] == [("2026-03", 2, 1_500_000)]
    narrow = ekiben("usage", "--by", "day,month,tenant,route,key", COLUMNS="40").stdout.splitlines()
    assert narrow[1].split()[:5] == ["2026-03-31", "2026-03", "acme", "handbook", "ek_k1"]
    assert ekiben("usage", "--by", "colour").returncode == 1
    assert ekiben("usage", EKIBEN_DATABASE_URL="mysql://x/y").returncode == 1
