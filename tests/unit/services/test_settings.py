"""Settings that go together, and messages that name no secret."""

import pytest

from services.settings import SettingsError, load_settings

KEY = "a-key-of-the-engine-0123"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_the_engine_needs_no_key(monkeypatch, host):
    monkeypatch.setenv("EKIBEN_ENGINE_HOST", host)

    assert load_settings().engine_token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "engine"])
def test_elsewhere_it_does(monkeypatch, host):
    monkeypatch.setenv("EKIBEN_ENGINE_HOST", host)
    with pytest.raises(SettingsError, match=r"^EKIBEN_ENGINE_HOST: .* set EKIBEN_ENGINE_KEY"):
        load_settings()
    monkeypatch.setenv("EKIBEN_ENGINE_KEY", KEY)

    assert load_settings().engine_token == KEY


def test_a_key_is_no_word_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("EKIBEN_ENGINE_KEY", "secret")
    with pytest.raises(SettingsError, match="16 characters") as caught:
        load_settings()
    monkeypatch.setenv("EKIBEN_ENGINE_KEY", KEY)

    assert "secret" not in str(caught.value)
    assert KEY not in repr(load_settings())


@pytest.mark.parametrize("key", [KEY + "\n", "two words of a key", "schlüssel-der-maschine"])
def test_a_key_that_no_header_can_carry(monkeypatch, key):
    monkeypatch.setenv("EKIBEN_ENGINE_KEY", key)
    with pytest.raises(SettingsError, match="EKIBEN_ENGINE_KEY: letters, digits") as caught:
        load_settings()

    assert key.strip() not in str(caught.value)


def test_a_url_without_its_scheme(monkeypatch):
    monkeypatch.setenv("EKIBEN_ENGINE_URL", "engine:8421")
    with pytest.raises(SettingsError, match="EKIBEN_ENGINE_URL: a URL that begins with http://"):
        load_settings()


def test_an_engine_that_sleeps_is_elsewhere(monkeypatch):
    monkeypatch.setenv("EKIBEN_ENGINE_SLEEPS", "true")
    with pytest.raises(SettingsError, match=r"EKIBEN_ENGINE_SLEEPS: .* set EKIBEN_ENGINE_URL"):
        load_settings()
    monkeypatch.setenv("EKIBEN_ENGINE_URL", "http://activator:8421")

    assert load_settings().engine_sleeps
