"""A program in a PID namespace of its own: its processes have the numbers they had when they were dumped, and end together.

The caller forks; the child is process 1 of the namespace, with its own /proc. When that child ends, however it ends, the kernel
ends everything in the namespace; it is killed when the caller dies. Linux, and CAP_SYS_ADMIN: unshare(2), pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os  # noqa: TID251  fork, wait and signals
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
SCRATCH = "/dev/shm"  # noqa: S108  a file system of the namespace's own
_LIBC = ctypes.CDLL(None, use_errno=True)
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def start(main: Callable[[], int]) -> int:
    """Fork `main` as process 1 of a new PID namespace, and return its process id here; it ends with what `main` returns.

    The caller itself, and what it starts later, stays where it was. Raises OSError where the kernel refuses.
    """
    here = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        _checked(_LIBC.unshare(CLONE_NEWPID), "unshare")
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            _first_process(main)
        _checked(_LIBC.setns(here, CLONE_NEWPID), "setns")
    finally:
        os.close(here)
    return child


def wait(process: int) -> int:
    """Wait for a process while signals are passed on to it; return its exit status, 128 and the signal's number if killed."""

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        _, status = os.waitpid(process, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return exit_status(status)


def end(process: int, *, seconds: float) -> int:
    """Ask a process to end, kill it after so many seconds, and return its exit status."""
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return exit_status(status)
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def reap_until(process: int) -> int:
    """As process 1: reap whatever ends until `process` did, and return its exit status."""
    while True:
        ended, status = os.wait()
        if ended == process:
            return exit_status(status)


def exit_status(status: int) -> int:
    """Return what a shell calls the exit status of a process."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def number_from(first: int) -> None:
    """Let the next process of this namespace have the number `first`."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1), encoding="ascii")


def _first_process(main: Callable[[], int]) -> None:
    status = 1
    try:
        _checked(_LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
        _checked(_LIBC.unshare(CLONE_NEWNS), "unshare")
        _checked(_LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
        _checked(_LIBC.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None), "mount")
        _checked(_LIBC.mount(b"tmpfs", SCRATCH.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=1777"), "mount")
        status = main()
    except BaseException:  # noqa: BLE001  nothing above us may run twice
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _checked(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
