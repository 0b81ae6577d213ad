"""Become another program that dies with its parent: `python -m services.child PROGRAM ARGUMENT...`.

Without this, a BentoML worker that is killed leaves its engine behind, holding the port and the memory. The program leads a
process group of its own, so that what it started can be ended with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os  # noqa: TID251  exec is all this does
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Lead a process group, ask the kernel for a SIGTERM at the parent's death, then exec."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  no shell is wanted


def become(program: list[str], folder: Path, environment: Mapping[str, str | None]) -> NoReturn:
    """Exec a program in a folder, with these variables beside ours; None takes one away. Signals and exit status are its own."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.chdir(folder)
    os.execvp(program[0], program)  # noqa: S606  no shell is wanted


def end_group(leader: int) -> None:
    """Kill what is left of the process group of a program that was started by `main`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    main()
