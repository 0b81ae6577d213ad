"""Answers in a real Redis: the contract of stores, two boxes, and a server that is down."""

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

from cache.redis_store import RedisStore

_PATH = Path(__file__).parents[1] / "unit" / "cache" / "store_contract.py"
_SPEC = importlib.util.spec_from_file_location("store_contract", _PATH)
contract = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contract)

SCOPE, key, answer = contract.SCOPE, contract.key, contract.answer
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    port = _port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = str(tmp_path_factory.mktemp("redis"))
    server = subprocess.Popen(["redis-server", *arguments, "--dir", folder], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    end = time.monotonic() + 30
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < end, "redis-server did not start"
            time.sleep(0.05)
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait()


@pytest.fixture
async def make(redis_url):
    made = []

    async def make(ttl=60.0, entries=2000, max_bytes=100_000):
        store = RedisStore(
            redis_url, ttl=ttl, scope_entries=entries, max_answer_bytes=max_bytes, timeout=10, prefix="test", failed=_unexpected
        )
        made.append(store)
        return store

    yield make
    for store in made:
        await store.clear()
        await store.close()


def _unexpected(operation, error):
    raise AssertionError(operation) from error


@pytest.mark.parametrize("keeps", contract.CONTRACT, ids=lambda keeps: keeps.__name__)
async def test_contract(make, keeps):
    await keeps(make)


async def test_two_boxes_share_answers_and_see_what_the_other_adds(make):
    one, other = await make(), await make()
    await one.put(SCOPE, key(1), answer("one", [1.0, 0.0]))
    assert len(await other.questions(SCOPE)) == 1
    await one.put(SCOPE, key(2), answer("two", [0.0, 1.0]))

    assert len(await other.questions(SCOPE)) == 2
    assert (await other.get(SCOPE, key(2))).question == answer("two").question


async def test_a_copy_of_the_questions_follows_a_set_that_was_emptied_and_filled_again(make):
    one, other = await make(), await make()
    for number in range(5):
        await one.put(SCOPE, key(number), answer(str(number), [1.0, float(number)]))
    assert len(await other.questions(SCOPE)) == 5
    await one.clear()
    await one.put(SCOPE, key(9), answer("nine", [1.0, 0.0]))

    questions = await other.questions(SCOPE)

    assert [k for k, _, _ in questions.nearest([1.0, 0.0], 9, 0.0)] == [key(9)]


async def test_other_keys_of_the_server_are_left_alone(make, redis_url):
    client = redis.Redis.from_url(redis_url)
    client.set("mine", "1")
    store = await make()
    await store.put(SCOPE, key(1), answer("one", [1.0]))
    await store.clear()

    assert client.keys("*") == [b"mine"]
    client.delete("mine")
    client.close()


async def test_data_of_somebody_else_is_a_miss_and_told(redis_url):
    told = []
    store = RedisStore(
        redis_url, prefix="test", timeout=10, failed=lambda operation, error: told.append((operation, type(error)))
    )
    client = redis.Redis.from_url(redis_url)
    client.set(f"test:cache:{{{SCOPE}}}:a:{key(1)}", b"no answer")

    assert await store.get(SCOPE, key(1)) is None
    assert told == [("get", ValueError)]
    await store.clear()
    await store.close()
    client.close()


async def test_a_server_that_is_down_is_a_miss_which_is_told_and_not_asked_again_at_once():
    told = []
    store = RedisStore(
        f"redis://127.0.0.1:{_port()}/0", pause=60, failed=lambda operation, error: told.append((operation, error))
    )

    await store.put(SCOPE, key(1), answer("one", [1.0]))
    assert await store.get(SCOPE, key(1)) is None
    assert len(await store.questions(SCOPE)) == 0
    await store.clear()

    assert [operation for operation, _ in told] == ["put"]
    await store.close()


async def test_a_server_that_does_not_answer_is_a_miss_after_the_timeout():
    told = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        store = RedisStore(url, timeout=0.1, pause=0, failed=lambda operation, _: told.append(operation))

        assert await store.get(SCOPE, key(1)) is None
        assert told == ["get"]
        await store.close()
