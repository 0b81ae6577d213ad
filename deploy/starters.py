"""How an upstream is started on one machine: a child process, or commands such as `systemctl start`."""

from __future__ import annotations

import asyncio
import contextlib
import os  # noqa: TID251  a process group is ended as one
import shlex
import signal
from collections.abc import Sequence

from deploy.lifecycle import StartFailed, StopFailed

_LONGEST_SAID = 500


class ChildStarter:
    """The upstream is a child of this process, which must lead a process group of its own, and end with its parent.

    `python -m services.child` before a command sees to both. What it prints goes where this process prints. It is ended with
    SIGTERM; what is left of the group after `grace` seconds, or after the leader's end, is killed.
    """

    def __init__(self, command: Sequence[str], *, grace: float = 30.0) -> None:
        self._command, self._grace = list(command), grace
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the child that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def leaves_running(self) -> bool:
        """Return False: a child that runs is ended first."""
        return False

    async def running(self) -> bool | None:
        """Return False: a child of another process is none of ours."""
        return False

    async def start(self) -> None:
        """Start it; a child that is still there is ended first. Raises StartFailed."""
        await self.stop()
        try:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            raise StartFailed(f"{self._command[0]} cannot be run: {error.strerror or error}") from error

    async def stop(self) -> None:
        """End the child and all that it started; it is known until it has ended, so that a second call can go on from a first."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
                    await process.wait()
        if process.returncode is None:
            _kill_group(process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # where it does not lead its group yet
            await process.wait()
        self._forget(process)

    async def ended(self) -> str:
        """Wait for its end, and say how it was; what it started is ended too."""
        process = self._process
        if process is None:
            return "it has not been started"
        status = await process.wait()
        self._forget(process)
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"it exited with {status}"

    async def close(self) -> None:
        """End the child."""
        await self.stop()

    def _forget(self, process: asyncio.subprocess.Process) -> None:
        """End what is left of the group of a process that has ended: once, for its number may be another's later."""
        if self._process is process:
            self._process = None
            _kill_group(process.pid)


class CommandStarter:
    """The upstream belongs to another manager (systemd, docker), which two commands ask to start and stop it.

    A command is done when it exits with 0; without a shell. It should return at once, and be harmless when done twice. One that
    stops is ended after `stop_seconds`.
    """

    def __init__(self, start: Sequence[str], stop: Sequence[str], *, stop_seconds: float = 60.0) -> None:
        self._start, self._stop, self._stop_seconds = list(start), list(stop), stop_seconds

    @property
    def leaves_running(self) -> bool:
        """Return True: its manager leaves what runs as it is."""
        return True

    async def running(self) -> bool | None:
        """Return None: its manager is not asked."""
        return None

    async def start(self) -> None:
        """Run the command that starts; raises StartFailed."""
        if message := await _run(self._start):
            raise StartFailed(message)

    async def stop(self) -> None:
        """Run the command that stops; raises StopFailed."""
        try:
            async with asyncio.timeout(self._stop_seconds):
                message = await _run(self._stop)
        except TimeoutError as error:
            raise StopFailed(f"{shlex.join(self._stop)} did not end within {self._stop_seconds:g} s") from error
        if message:
            raise StopFailed(message)

    async def ended(self) -> str:
        """Never return: its manager knows."""
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        """Leave it as it is."""


async def _run(command: list[str]) -> str | None:
    """Run a command and return what is wrong, or None."""
    told = shlex.join(command)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return f"{told} cannot be run: {error.strerror or error}"
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode:
        return f"{told} exited with {process.returncode}: {said.decode(errors='replace').strip()[-_LONGEST_SAID:]}"
    return None


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
