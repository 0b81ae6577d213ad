"""What a bundle and the settings make of the parts that limit, remember and write down."""

from contextlib import aclosing

import pytest
from pydantic import SecretStr

from accounts.database import Database
from cache.redis_store import RedisStore
from cache.store import MemoryStore
from services.bundle import load_bundle
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import MissingVariable, filled, has_costs, open_accounting, open_backends, open_caches

from .conftest import BUNDLE, FakeEngine

UPSTREAM = 'upstreams: {far: {url: "https://far.example", key: "${FAR_KEY}"}}\n'


@pytest.fixture
def bundle_of(bundle_folder):
    def made(more="", route=""):
        text = BUNDLE.replace("free: {prompt: plain, policy: open", f"free: {{prompt: plain, policy: open{route}") + more
        (bundle_folder / "bundle.yaml").write_text(text, encoding="utf-8")
        return load_bundle(bundle_folder / "bundle.yaml").bundle

    return made


@pytest.fixture
def telemetry(registry):
    return Telemetry(registry)


async def embed(text):
    return [1.0]


def test_variables_are_filled_in(monkeypatch):
    monkeypatch.setenv("FAR_KEY", "sk-1")

    assert filled("${FAR_KEY}") == "sk-1"
    assert filled("plain") == "plain"
    with pytest.raises(MissingVariable, match="NEAR_KEY, which is not set"):
        filled("${NEAR_KEY}")


async def test_a_key_that_is_not_set_stops_the_start(bundle_of, telemetry):
    with pytest.raises(MissingVariable, match="FAR_KEY"):
        async with open_backends(bundle_of(UPSTREAM), FakeEngine(), telemetry):
            pytest.fail("it was opened")


async def test_places_at_the_engine_are_what_it_takes_at_once(bundle_of, telemetry, monkeypatch):
    monkeypatch.setenv("FAR_KEY", "sk-1")
    bundle = bundle_of(UPSTREAM + "tenants: {acme: {weight: 3}}\n")
    async with open_backends(bundle, FakeEngine(), telemetry) as backends:
        assert backends.admission.capacity == bundle.engine.max_num_seqs
        assert [*backends.upstreams] == ["far"]
    async with open_backends(bundle_of("queue: {capacity: 2}\n"), FakeEngine(), telemetry) as backends:
        assert backends.admission.capacity == 2


@pytest.mark.parametrize(
    ("more", "route", "costs"),
    [
        ("callers: {anonymous: true}\n", "", False),
        ("callers: {anonymous: true}\n", ", price: {prompt: 1}", True),
        ("callers: {anonymous: true}\ntenants: {a: {}}\n", "", True),
        ("callers: {anonymous: loopback}\n", "", True),
        ("", "", True),
    ],
)
def test_spend_is_written_where_something_costs(bundle_of, more, route, costs):
    assert has_costs(bundle_of(more, route)) is costs


async def test_what_a_bundle_does_not_name_is_not_opened(bundle_of, telemetry, tmp_path):
    settings = Settings(state_dir=tmp_path / "state")
    async with aclosing(Database(settings.database)) as database:
        bundle = bundle_of("callers: {anonymous: true}\n")
        async with open_accounting(bundle, settings, telemetry, database) as accounting:
            assert (accounting.ledger, accounting.audit) == (None, None)
        async with open_accounting(bundle_of("audit: {enabled: true}\n"), settings, telemetry, database) as accounting:
            assert accounting.ledger is not None
            assert accounting.audit is not None
            assert telemetry.written == accounting.write


async def test_encrypted_texts_need_their_key(bundle_of, telemetry, tmp_path):
    bundle = bundle_of("audit: {enabled: true, texts: encrypted}\n")
    settings = Settings(state_dir=tmp_path / "state", audit_key=SecretStr("0123456789abcdef"))
    async with aclosing(Database(settings.database)) as database:
        with pytest.raises(ValueError, match="set EKIBEN_AUDIT_TEXT_KEY"):
            async with open_accounting(bundle, settings, telemetry, database):
                pytest.fail("it was opened")


async def test_caches_are_those_of_the_routes(bundle_of, telemetry, registry):
    bundle = bundle_of("", ", cache: {ttl_seconds: 5, stale_seconds: 9}")
    async with open_caches(bundle, Settings(), telemetry, embed) as caches:
        assert {name: type(answers._store) for name, answers in caches.items()} == {"free": MemoryStore}
        assert caches["free"]._good == 5
    remote = Settings(redis_url=SecretStr("redis://127.0.0.1:1"))
    async with open_caches(bundle, remote, telemetry, embed) as caches:
        store = caches["free"]._store
        assert isinstance(store, RedisStore)
        assert store._ttl_ms == 14_000
        assert registry.get_sample_value("llm_degraded", {"store": "cache"}) == 0
        assert await store.get("s", "k") is None
        assert registry.get_sample_value("llm_degraded", {"store": "cache"}) == 1
