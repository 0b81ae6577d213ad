"""A program started through services.child dies with its parent, and what it started can be ended with it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from services.child import end_group

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
START_AND_SLEEP = f"import subprocess, time; print(subprocess.Popen({SLEEP!r}).pid, flush=True); time.sleep(60)"


def gone(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_it_dies_with_its_parent():
    start = f"p = subprocess.Popen([sys.executable, '-m', 'services.child', *{SLEEP!r}])"
    code = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        child = int(parent.stdout.readline())
        while "services.child" in psutil.Process(child).cmdline():
            time.sleep(0.05)
        parent.kill()

    assert gone(child)


def test_what_it_started_is_ended_with_it():
    command = [sys.executable, "-m", "services.child", sys.executable, "-c", START_AND_SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as leader:
        grandchild = int(leader.stdout.readline())
        leader.kill()
        leader.wait()
        assert psutil.pid_exists(grandchild)
        end_group(leader.pid)

    assert gone(grandchild)
    end_group(leader.pid)  # nothing left is no error
