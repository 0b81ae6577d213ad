"""Signs of life: until the answer begins, never amid it."""

import asyncio

import pytest

from services.keepalive import kept_alive


class Caller:
    def __init__(self):
        self.heard, self.gate, self.error = [], asyncio.Event(), None
        self.gate.set()

    async def say(self):
        if self.error:
            raise self.error
        self.heard.append("begin")
        await self.gate.wait()
        self.heard.append("end")


async def until(true):
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.001)


async def test_it_is_said_until_the_answer_begins():
    caller = Caller()
    async with kept_alive(caller.say, 0.01) as begin:
        await until(lambda: len(caller.heard) >= 4)
        await begin()
        said = len(caller.heard)
        await asyncio.sleep(0.05)

        assert len(caller.heard) == said


async def test_what_is_being_said_is_finished_before_the_answer_begins():
    caller = Caller()
    caller.gate.clear()
    async with kept_alive(caller.say, 0.01) as begin:
        await until(lambda: caller.heard)
        beginning = asyncio.create_task(begin())
        await asyncio.sleep(0.03)
        assert not beginning.done()
        caller.gate.set()
        await beginning

        assert caller.heard == ["begin", "end"]


async def test_nothing_is_left_when_the_block_ends():
    caller = Caller()
    with pytest.raises(KeyError):
        async with kept_alive(caller.say, 60):
            raise KeyError

    assert [task for task in asyncio.all_tasks() if task.get_name() == "keepalive"] == []


async def test_a_caller_who_has_gone_is_no_error_of_the_answer():
    caller = Caller()
    caller.error = ConnectionResetError()
    async with kept_alive(caller.say, 0.001) as begin:
        await asyncio.sleep(0.01)
        await begin()

    assert caller.heard == []
