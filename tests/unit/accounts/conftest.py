"""A loop whose clock stands still while there is work, and jumps to the next timer when there is none."""

import asyncio
import selectors

import pytest


class _Impatient(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits and nobody is to come")
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeping costs no time; a program in which all wait for ever ends with an error."""

    def __init__(self):
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self):
        return self._impatient.now

    def microseconds(self):
        return round(self.time() * 1_000_000)


@pytest.fixture
def virtual():
    """Runs a coroutine function, given the loop, on virtual time."""

    def run(program):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(program(runner.get_loop()))

    return run
