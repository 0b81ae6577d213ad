"""API keys: what a key may say of itself, and what is kept of its secret. The store itself is in tests/integration."""

import hashlib
import re

import pytest
from pydantic import ValidationError

from accounts import keys as module
from accounts.database import Database, DatabaseUnavailable, open_database
from accounts.keys import Key, KeyStore, NewKey, digest_of, is_secret

NEW = {"name": "app", "owner": "jane", "tenant": "acme"}


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(tmp_path, clock):
    async with open_database(f"sqlite:///{tmp_path}/state/ekiben.db") as engine:
        yield KeyStore(engine, clock)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "  "), ("name", "a\0b"), ("name", "a\nb"), ("name", "x" * 129), ("name", "\udc00"), ("tenant", ""),
        ("owner", None), ("roles", {""}), ("roles", {"a\x1b"}), ("routes", {str(n) for n in range(65)}), ("colour", 1),
        ("expires_at", 0), ("expires_at", float("nan")), ("expires_at", float("inf")),
        ("requests_per_minute", 0), ("tokens_per_minute", -1), ("concurrency", 1.5), ("tokens_per_minute", 2**53),
        ("budget_day", 0), ("budget_month", float("inf")), ("budget_day", float("nan")),
    ],
)  # fmt: skip
def test_what_no_key_may_be(field, value):
    with pytest.raises(ValidationError):
        NewKey(**{**NEW, field: value})


def test_names_are_trimmed_and_may_be_of_any_script():
    new = NewKey(name=" 财务助手 ", owner="o'neil", tenant="x' OR '1'='1", roles={" staff", "staff "})

    assert (new.name, new.roles) == ("财务助手", {"staff"})


def test_a_key_ends_at_its_expiry():
    key = Key(**NEW, id="0" * 16, created_at=1.0, expires_at=10.0)

    assert [key.expired(now) for now in (9.99, 10.0, 11.0)] == [False, True, True]
    assert [key.status(9.0), key.status(10.0)] == ["active", "expired"]
    assert key.model_copy(update={"revoked_at": 3.0}).status(9.0) == "revoked"


async def test_a_secret_has_256_random_bits_and_names_its_key(store):
    made = [await store.create(NewKey(**NEW)) for _ in range(50)]

    for key, secret in made:
        assert re.fullmatch(rf"{key.prefix}_[A-Za-z0-9_-]{{43}}", secret)
        assert is_secret(secret)
    assert len({secret[-43:] for _, secret in made}) == len({key.id for key, _ in made}) == 50


@pytest.mark.parametrize("spoil", ["", "x", " ", "\n", "é"])
def test_what_is_no_secret(spoil):
    good = f"ek_{'0' * 16}_{'a' * 43}"

    assert is_secret(good)
    for text in (f"{good}{spoil}" if spoil else good[:-1], f"{spoil}{good}" if spoil else good[1:], good.upper()):
        assert not is_secret(text)


async def test_the_file_holds_no_secret(store, tmp_path):
    _, secret = await store.create(NewKey(**NEW))
    content = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())

    assert hashlib.sha256(secret.encode()).hexdigest() == digest_of(secret)
    assert digest_of(secret).encode() in content
    assert secret[-43:].encode() not in content


async def test_digests_are_compared_in_constant_time_also_where_there_is_no_key(store, monkeypatch):
    """Two comparisons of equal lengths for every secret of the right form."""
    compared = []

    class Spy:
        @staticmethod
        def compare_digest(a, b):
            compared.append((len(a), len(b)))
            return a == b

    _, secret = await store.create(NewKey(**NEW))
    wrong, unknown = secret[:-1] + ("a" if secret[-1] != "a" else "b"), f"ek_{'0' * 16}_{secret[-43:]}"
    monkeypatch.setattr(module, "hmac", Spy)
    found = [await store.verify(text) for text in (secret, wrong, unknown)]

    assert [key is not None for key in found] == [True, False, False]
    assert compared == [(64, 64)] * 6


async def test_a_database_that_could_not_be_opened_is_tried_again(tmp_path):
    (tmp_path / "state").write_text("a file in the place of the folder")
    database = Database(f"sqlite:///{tmp_path}/state/ekiben.db")
    with pytest.raises(DatabaseUnavailable, match="cannot be made"):
        await database.engine()
    (tmp_path / "state").unlink()

    assert await database.engine() is await database.engine()
    assert await KeyStore(await database.engine()).list() == []
    await database.aclose()


async def test_what_is_no_database_is_told_without_its_password(tmp_path):
    (tmp_path / "ekiben.db").write_bytes(b"no database" * 1000)
    servers = ("postgresql://jane:hidden@127.0.0.1:1/x", "postgresql://jane@127.0.0.1:1/x?password=hidden")
    for url in (f"sqlite:///{tmp_path}/ekiben.db", *servers):
        with pytest.raises(DatabaseUnavailable) as told:
            await Database(url).engine()
        assert "cannot be used now" in str(told.value)
        assert "hidden" not in str(told.value)


@pytest.mark.parametrize("url", ["", "x", "mysql://a:hidden@b/c", "sqlite+pysqlite:///x", "redis://x"])
def test_what_is_no_url_of_a_database_is_told_before_it_is_opened(url):
    with pytest.raises(ValueError, match="a database is sqlite:///FILE or postgresql://USER@HOST/NAME"):
        Database(url)
