"""What every store keeps to; `make` gives a fresh one with these settings."""

import asyncio

from cache.store import Stored

SCOPE, OTHER = "a" * 64, "b" * 64


def key(number):
    return f"{number:064x}"


def answer(text="x", vector=None):
    return Stored({"choices": [{"message": {"content": text}}]}, f"asked {text} 为什么?", 1000.0, vector)


async def returns_what_was_put(make):
    store = await make()
    stored = answer("one", [1.0, 0.0])
    await store.put(SCOPE, key(1), stored)

    found = await store.get(SCOPE, key(1))

    assert (found.body, found.question, found.created) == (stored.body, stored.question, 1000.0)
    assert await store.get(SCOPE, key(2)) is None
    assert await store.get(OTHER, key(1)) is None


async def a_body_that_is_changed_does_not_change_what_is_kept(make):
    store = await make()
    await store.put(SCOPE, key(1), answer("one"))
    (await store.get(SCOPE, key(1))).body["choices"] = []

    assert (await store.get(SCOPE, key(1))).body["choices"]


async def a_later_answer_takes_the_place_of_the_former(make):
    store = await make()
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    await store.put(SCOPE, key(1), answer("two", [0.0, 1.0]))

    questions = await store.questions(SCOPE)

    assert (await store.get(SCOPE, key(1))).question.startswith("asked two")
    assert [(k, t) for k, t, _ in questions.nearest([0.0, 1.0], 5, 0.9)] == [(key(1), answer("two").question)]


async def questions_are_those_of_the_scope_with_vectors(make):
    store = await make()
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    await store.put(SCOPE, key(2), answer("two"))
    await store.put(OTHER, key(3), answer("three", [1.0, 0.0]))

    assert [k for k, _, _ in (await store.questions(SCOPE)).nearest([1.0, 0.0], 5, 0.5)] == [key(1)]
    await store.put(SCOPE, key(4), answer("four", [0.9, 0.1]))
    assert [k for k, _, _ in (await store.questions(SCOPE)).nearest([1.0, 0.0], 5, 0.5)] == [key(1), key(4)]
    assert len(await store.questions("c" * 64)) == 0


async def an_old_answer_is_gone(make):
    store = await make(ttl=0.3)
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    assert await store.get(SCOPE, key(1)) is not None
    await asyncio.sleep(0.6)

    assert await store.get(SCOPE, key(1)) is None


async def no_more_answers_of_a_scope_than_allowed(make):
    store = await make(entries=5)
    for number in range(12):
        await store.put(SCOPE, key(number), answer(str(number), [1.0, float(number)]))

    left = [number for number in range(12) if await store.get(SCOPE, key(number)) is not None]

    assert left == [7, 8, 9, 10, 11]


async def an_answer_that_is_too_large_is_not_kept(make):
    store = await make(max_bytes=2000)
    large = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(5000))
    await store.put(SCOPE, key(1), answer(large))
    await store.put(SCOPE, key(2), answer("small"))

    assert await store.get(SCOPE, key(1)) is None
    assert await store.get(SCOPE, key(2)) is not None


async def clear_forgets_everything(make):
    store = await make()
    await store.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    await store.questions(SCOPE)
    await store.clear()

    assert await store.get(SCOPE, key(1)) is None
    assert len(await store.questions(SCOPE)) == 0
    await store.put(SCOPE, key(2), answer("two", [1.0, 0.0]))
    assert len(await store.questions(SCOPE)) == 1


CONTRACT = [
    returns_what_was_put,
    a_body_that_is_changed_does_not_change_what_is_kept,
    a_later_answer_takes_the_place_of_the_former,
    questions_are_those_of_the_scope_with_vectors,
    an_old_answer_is_gone,
    no_more_answers_of_a_scope_than_allowed,
    an_answer_that_is_too_large_is_not_kept,
    clear_forgets_everything,
]
