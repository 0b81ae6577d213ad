"""Who comes to the engine, when, and who is sent away; on virtual time."""

import asyncio
import random
from collections import Counter, defaultdict, deque

import pytest

from accounts.admission import Admission, Overloaded


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


class Hall:
    """An admission, and what became of everybody who came to it."""

    def __init__(self, admission):
        self.admission = admission
        self.order, self.shed, self.left = [], {}, []
        self.doors, self.tasks = {}, {}

    async def come(self, tenant, name):
        self.doors[name] = asyncio.Event()
        self.tasks[name] = asyncio.ensure_future(self._visit(tenant, name))
        await settled()

    async def _visit(self, tenant, name):
        try:
            async with self.admission.slot(tenant):
                self.order.append(name)
                await self.doors[name].wait()
        except Overloaded as overloaded:
            self.shed[name] = overloaded
        except asyncio.CancelledError:
            self.left.append(name)
            raise

    async def go(self, name):
        self.doors[name].set()
        await settled()

    async def cancel(self, name):
        self.tasks[name].cancel()
        await settled()

    async def empty(self):
        for door in self.doors.values():
            door.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


def test_tenants_take_turns_and_each_is_served_in_order(virtual):
    async def program(_loop):
        hall = Hall(Admission(1, 10, 60))
        for name in ("first", "a1", "a2", "a3", "b1", "b2", "c1"):
            await hall.come(name[0], name)
        await hall.empty()
        return hall.order

    assert virtual(program) == ["first", "a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_weight_is_that_many_turns_in_a_row(virtual):
    async def program(_loop):
        hall = Hall(Admission(1, 20, 60, {"a": 2}))
        for name in ("first", "b1", "b2", "b3", "a1", "a2", "a3", "a4"):
            await hall.come(name[0], name)
        await hall.empty()
        return hall.order

    assert virtual(program) == ["first", "b1", "a1", "a2", "b2", "a3", "a4", "b3"]


def test_a_full_queue_sheds_the_newest_of_the_longest_and_not_the_newcomer(virtual):
    async def program(_loop):
        hall = Hall(Admission(1, 3, 60))
        for name in ("first", "a1", "a2", "a3", "b1", "a4", "c1", "d1"):
            await hall.come(name[0], name)
        await hall.empty()
        return hall

    hall = virtual(program)

    # a3 for b1, a4 itself, a2 for c1; then all are alike, and who comes last goes.
    assert list(hall.shed) == ["a3", "a4", "a2", "d1"]
    assert {overloaded.reason for overloaded in hall.shed.values()} == {"full"}
    assert all(1 <= overloaded.retry_after_seconds <= 60 for overloaded in hall.shed.values())
    assert hall.order == ["first", "a1", "b1", "c1"]


def test_without_a_queue_who_finds_no_place_is_shed_at_once(virtual):
    async def program(_loop):
        hall = Hall(Admission(2, 0, 60))
        for name in ("a1", "a2", "b1"):
            await hall.come(name[0], name)
        shed = list(hall.shed)
        await hall.empty()
        return shed, hall.admission

    shed, admission = virtual(program)

    assert shed == ["b1"]
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_wait_ends_at_the_deadline(virtual):
    async def program(loop):
        hall = Hall(Admission(1, 3, 5))
        await hall.come("a", "first")
        await hall.come("a", "late")
        await asyncio.sleep(4.9)
        early = dict(hall.shed)
        await asyncio.sleep(0.2)
        counts = hall.admission.running, hall.admission.waiting
        await hall.empty()
        return early, hall.shed, counts, hall.admission.running

    early, shed, counts, running = virtual(program)

    assert not early
    assert shed["late"].reason == "deadline"
    assert (counts, running) == ((1, 0), 0)


def test_who_leaves_the_queue_frees_his_place_in_it(virtual):
    async def program(_loop):
        hall = Hall(Admission(1, 1, 60))
        await hall.come("a", "first")
        await hall.come("a", "a1")
        await hall.cancel("a1")
        await hall.come("b", "b1")
        await hall.empty()
        return hall

    hall = virtual(program)

    assert (hall.order, hall.left, hall.shed) == (["first", "b1"], ["a1"], {})


@pytest.mark.parametrize("leaver_first", [True, False])
def test_a_place_given_to_one_who_leaves_in_the_same_step_goes_to_the_next(virtual, leaver_first):
    """The lost wake-up: turn and leaving meet before the waiter's task has run."""

    async def program(_loop):
        hall = Hall(Admission(1, 5, 60))
        for name in ("first", "a1", "b1"):
            await hall.come(name[0], name)
        acts = [hall.tasks["a1"].cancel, hall.doors["first"].set]
        for act in acts if leaver_first else reversed(acts):
            act()
        await settled()
        order = list(hall.order)
        await hall.empty()
        return order, hall.admission

    order, admission = virtual(program)

    assert order == ["first", "b1"]
    assert (admission.running, admission.waiting) == (0, 0)


def test_who_leaves_in_the_step_in_which_his_turn_came_hands_it_on(virtual):
    async def program(_loop):
        hall = Hall(Admission(1, 5, 60))
        await hall.admission._enter("z")
        for name in ("a1", "b1"):
            await hall.come(name[0], name)
        hall.admission._leave()
        hall.tasks["a1"].cancel()
        await settled()
        order = list(hall.order)
        await hall.empty()
        return order, hall.admission

    order, admission = virtual(program)

    assert order == ["b1"]
    assert (admission.running, admission.waiting) == (0, 0)


@pytest.mark.parametrize("event", ["shed", "turn"])
def test_what_comes_in_the_step_of_the_deadline_counts(virtual, event):
    async def program(loop):
        hall = Hall(Admission(1, 2, 5))
        await hall.admission._enter("z")
        if event == "turn":
            act = hall.admission._leave
        else:
            await hall.come("a", "a1")

            def act():
                hall.admission._make_room("b")

        await hall.come("a", "last")
        # Within the resolution of the clock, so both are done in one step, this one first.
        loop.call_at(loop.time() + 5 - 5e-10, act)
        await asyncio.sleep(6)
        entered, shed = list(hall.order), {name: overloaded.reason for name, overloaded in hall.shed.items()}
        if event == "shed":
            hall.admission._leave()
        await hall.empty()
        return entered, shed, hall.admission.running

    entered, shed, running = virtual(program)

    assert (entered, shed) == ((["last"], {}) if event == "turn" else ([], {"a1": "deadline", "last": "full"}))
    assert running == 0


def test_a_place_freed_at_the_very_deadline_is_not_lost(virtual):
    async def program(loop):
        hall = Hall(Admission(1, 5, 5))
        await hall.come("a", "first")
        await hall.come("a", "late")
        loop.call_at(loop.time() + 5, hall.doors["first"].set)
        await asyncio.sleep(6)
        await hall.come("b", "next")
        order = list(hall.order)
        await hall.empty()
        return order, hall.admission.running

    order, running = virtual(program)

    assert order in (["first", "late"], ["first", "next"])
    assert running == 0


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="capacity"):
        Admission(*wrong)


def test_a_weight_below_one_is_refused():
    with pytest.raises(ValueError, match="weight"):
        Admission(1, 1, 1, {"a": 0})


class Model:
    """Random tenants come, are served, leave in the queue or in service; what must hold is looked at after every step."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.capacity, self.length = self.random.randint(1, 5), self.random.randint(0, 12)
        self.deadline = self.random.choice([3, 30])
        self.admission = Admission(self.capacity, self.length, self.deadline)
        self.inside = 0
        self.came, self.served, self.outcomes = defaultdict(deque), defaultdict(list), Counter()
        self.passed = Counter()

    async def visit(self, loop, number):
        tenant = f"t{min(self.random.randrange(8), self.random.randrange(8))}"
        started, state = loop.time(), "waiting"
        self.came[tenant].append(number)
        try:
            async with self.admission.slot(tenant) as waited:
                state = "served"
                self.inside += 1
                assert waited == loop.time() - started <= self.deadline
                self.served[tenant].append(number)
                try:
                    assert self.inside <= self.capacity
                    assert self.admission.running <= self.capacity
                    await asyncio.sleep(self.random.expovariate(1))
                    if self.random.random() < 0.1:
                        raise RuntimeError("the stream broke")
                finally:
                    self.inside -= 1
        except Overloaded as overloaded:
            assert state == "waiting"
            if overloaded.reason == "deadline":
                assert loop.time() - started == pytest.approx(self.deadline)
            state = overloaded.reason
        except RuntimeError:
            state = "broke"
        except asyncio.CancelledError:
            state += ", left"
        self.outcomes[state] += 1

    async def program(self, loop):
        tasks = []
        for number in range(400):
            await asyncio.sleep(self.random.expovariate(self.capacity * 1.5))
            tasks.append(asyncio.ensure_future(self.visit(loop, number)))
            if self.random.random() < 0.2:
                self.random.choice(tasks).cancel()
            assert 0 <= self.admission.waiting <= self.length
            # Nobody waits at an open door.
            await settled()
            assert self.admission.waiting == 0 or self.admission.running == self.capacity
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
        return sum(task.cancelled() for task in tasks)


@pytest.mark.parametrize("seed", range(30))
def test_random_visitors(virtual, seed):
    """Never above capacity, nobody waits beside an open door, everybody's wait ends, and each tenant is served in order."""
    model = Model(seed)
    never_began = virtual(model.program)

    assert sum(model.outcomes.values()) + never_began == 400
    assert (model.admission.running, model.admission.waiting, model.inside) == (0, 0, 0)
    assert all(numbers == sorted(numbers) for numbers in model.served.values())
    assert model.outcomes["served"] > 50


def test_who_asks_little_waits_for_few_turns_however_much_another_asks(virtual):
    """No tenant starves: with k tenants in the queue, a tenant's first request is among the next k."""

    async def program(_loop):
        hall = Hall(Admission(1, 50, 1000))
        await hall.come("z", "first")
        for number in range(48):
            await hall.come("greedy", f"greedy{number}")
        await hall.come("b", "b")
        await hall.come("c", "c")
        await hall.empty()
        return hall.order

    assert virtual(program)[:5] == ["first", "greedy0", "b", "c", "greedy1"]


def waits(program):
    """Run a visit while the only place is taken; return when it ended, and how."""

    async def visit(admission, loop, ended):
        try:
            async with admission.slot("late"):
                ended.append((loop.time(), "in"))
        except Overloaded as overloaded:
            ended.append((loop.time(), overloaded.reason))

    async def run(loop):
        admission, ended = Admission(1, 5, 10), []
        async with admission.slot("first"):
            began = loop.time()
            visiting = asyncio.ensure_future(program(admission, lambda: visit(admission, loop, ended)))
            await visiting
        return [(at - began, how) for at, how in ended]

    return run


def test_while_the_engine_starts_everybody_waits_longer(virtual):
    async def program(admission, visit):
        admission.prolong(300)
        await visit()

    assert virtual(waits(program)) == [(310, "deadline")]


@pytest.mark.parametrize(("awake_at", "ends_at"), [(100, 110), (1, 11), (305, 315)])
def test_the_time_of_its_start_is_not_counted(virtual, awake_at, ends_at):
    async def program(admission, visit):
        admission.prolong(300)
        waiting = asyncio.ensure_future(visit())
        await asyncio.sleep(awake_at)
        admission.prolong(0)
        await waiting

    assert virtual(waits(program)) == [(ends_at, "deadline")]


def test_what_was_waited_while_it_was_awake_counts(virtual):
    async def program(admission, visit):
        waiting = asyncio.ensure_future(visit())
        for _ in range(4):  # two seconds awake, two not
            await asyncio.sleep(2)
            admission.prolong(300)
            await asyncio.sleep(2)
            admission.prolong(0)
        await waiting

    assert virtual(waits(program)) == [(18, "deadline")]


def test_who_waits_when_it_falls_asleep_waits_longer_too(virtual):
    async def program(admission, visit):
        waiting = asyncio.ensure_future(visit())
        await asyncio.sleep(5)
        admission.prolong(300)
        await waiting

    assert virtual(waits(program)) == [(310, "deadline")]
