"""Children and commands that start and stop an upstream, with real processes."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from deploy import starters
from deploy.lifecycle import StartFailed, StopFailed
from deploy.starters import ChildStarter, CommandStarter

ROOT = Path(__file__).resolve().parents[2]
STUBBORN = (
    "import signal,subprocess,sys,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);"
    "child=subprocess.Popen([sys.executable,'-c','import time;time.sleep(60)']);"
    "open(sys.argv[1],'w').write(str(child.pid)+' ');time.sleep(60)"
)


def child(code, *words, **more):
    return ChildStarter([sys.executable, "-m", "services.child", sys.executable, "-c", code, *words], **more)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # also between the two
        return False


async def test_who_does_not_heed_sigterm_is_killed_with_all_that_it_started(tmp_path):
    started = child(STUBBORN, str(tmp_path / "pid"), grace=0.3)
    await started.start()
    first = started.pid
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    grandchild = int((tmp_path / "pid").read_text())
    assert (alive(first), alive(grandchild)) == (True, True)
    await started.stop()

    async with asyncio.timeout(5):
        while alive(first) or alive(grandchild):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert started.pid is None


@pytest.mark.parametrize(
    ("code", "told"), [("raise SystemExit(3)", "it exited with 3"), ("import os;os.abort()", "killed by SIGABRT")]
)
async def test_how_it_ended_is_told(code, told):
    started = child(code)
    await started.start()

    assert await asyncio.wait_for(started.ended(), 20) == told
    await started.close()


async def test_a_second_start_ends_the_first_child():
    started = child("import time;time.sleep(60)")
    await started.start()
    first = started.pid
    await started.start()
    second = started.pid

    assert (alive(first), alive(second), first != second) == (False, True, True)
    await started.close()
    assert not alive(second)


async def test_a_program_that_is_not_there_is_told():
    with pytest.raises(StartFailed, match="no-such-program cannot be run: No such file"):
        await ChildStarter(["no-such-program"]).start()


async def test_commands_start_and_stop(tmp_path):
    sign = tmp_path / "on"
    made = CommandStarter(["touch", str(sign)], ["rm", str(sign)])
    await made.start()
    assert sign.exists()
    await made.stop()
    assert not sign.exists()

    with pytest.raises(StopFailed, match="No such file"):
        await made.stop()


async def test_commands_that_fail_say_what_they_said():
    made = CommandStarter(["sh", "-c", "echo no such unit; exit 5"], ["no-such-program"])
    with pytest.raises(StartFailed, match="exited with 5: no such unit"):
        await made.start()
    with pytest.raises(StopFailed, match="no-such-program cannot be run"):
        await made.stop()


async def test_a_stop_that_was_cut_short_is_gone_on_with(tmp_path):
    """As on SIGTERM while an idle child is being stopped: neither it nor what it started is left."""
    started = child(STUBBORN, str(tmp_path / "pid"), grace=60)
    await started.start()
    first = started.pid
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    grandchild = int((tmp_path / "pid").read_text())
    stopping = asyncio.create_task(started.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    started._grace = 0.1
    await started.close()

    async with asyncio.timeout(5):
        while alive(first) or alive(grandchild):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_has_ended_is_not_killed_at_the_next_start(monkeypatch):
    """Its process id may be another's by then."""
    started = child("pass")
    await started.start()
    await asyncio.wait_for(started.ended(), 20)
    killed = []
    monkeypatch.setattr(starters.os, "killpg", lambda group, _signal: killed.append(group))
    await started.start()
    monkeypatch.undo()

    assert killed == []
    await started.close()


async def test_a_stop_command_that_hangs_has_failed_and_is_ended(tmp_path):
    sign = tmp_path / "pid"
    made = CommandStarter(["true"], ["sh", "-c", f"echo $$ > {sign}; exec sleep 60"], stop_seconds=2)
    with pytest.raises(StopFailed, match="did not end within 2 s"):
        await made.stop()

    async with asyncio.timeout(5):
        while alive(int(sign.read_text())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
