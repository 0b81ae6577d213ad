"""Answers in memory: the contract of stores, and that what leaves leaves whole."""

import importlib.util
from pathlib import Path

import pytest

from cache.store import MemoryStore, pack, unpack

_SPEC = importlib.util.spec_from_file_location("store_contract", Path(__file__).parent / "store_contract.py")
contract = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contract)
SCOPE, key, answer = contract.SCOPE, contract.key, contract.answer


async def _make(ttl=60.0, entries=2000, max_bytes=1_000_000):
    return MemoryStore(ttl, entries, max_bytes)


@pytest.mark.parametrize("keeps", contract.CONTRACT, ids=lambda keeps: keeps.__name__)
async def test_contract(keeps):
    await keeps(_make)


async def test_what_was_used_stays_and_what_leaves_takes_its_question_along():
    store = MemoryStore(max_entries=2)
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    await store.put(SCOPE, key(2), answer("two", [1.0, 0.0]))
    await store.get(SCOPE, key(1))
    await store.put(SCOPE, key(3), answer("three", [1.0, 0.0]))

    assert await store.get(SCOPE, key(2)) is None
    assert {k for k, _, _ in (await store.questions(SCOPE)).nearest([1.0, 0.0], 9, 0.0)} == {key(1), key(3)}


async def test_old_questions_leave_with_their_answers():
    now = [0.0]
    store = MemoryStore(ttl=10, timer=lambda: now[0])
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    now[0] = 9.9
    assert len(await store.questions(SCOPE)) == 1
    now[0] = 10.1

    assert len(await store.questions(SCOPE)) == 0
    assert await store.get(SCOPE, key(1)) is None


async def test_bytes_are_bounded_vectors_included():
    store = MemoryStore(max_bytes=20_000)
    for number in range(50):
        await store.put(SCOPE, key(number), answer(str(number), [0.5] * 384))

    assert 1 <= len(await store.questions(SCOPE)) <= 20_000 // (384 * 4)
    assert await store.get(SCOPE, key(49)) is not None


def test_packed_is_read_again_and_anything_else_is_refused():
    stored = answer("\ud800 为什么")

    assert unpack(pack(stored)) == stored
    for data in (b"", b"x", pack(stored)[:-4]):
        with pytest.raises(ValueError, match="not an answer"):
            unpack(data)
