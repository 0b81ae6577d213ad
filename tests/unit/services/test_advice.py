"""What `ekiben check` warns of: the bundle has no mistake, and yet it would not do here what it says."""

import pytest

from services.advice import advise
from services.bundle import load_bundle, located
from services.settings import Settings, SettingsError, load_settings

AUDIT = "audit: {enabled: true, texts: encrypted}\n"


def advice(bundle_folder, more, settings=None, **variables):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text() + more)
    return located(path, advise(load_bundle(path).bundle, settings or Settings(), variables.get))


def test_a_bundle_that_wants_nothing_is_not_talked_about(bundle_folder):
    assert advice(bundle_folder, "") == []


def test_a_variable_that_is_not_set_is_told_with_its_line(bundle_folder):
    more = "upstreams:\n  big: {url: 'https://x.example.com', key: '${BIG_KEY}'}\n"
    [line] = advice(bundle_folder, more)

    assert line.startswith(f"{bundle_folder / 'bundle.yaml'}:17: upstreams.big.key: the variable BIG_KEY is not set here")


def test_a_variable_that_is_set_is_not_told(bundle_folder):
    assert advice(bundle_folder, "upstreams: {big: {url: 'https://x.example.com', key: '${BIG_KEY}'}}\n", BIG_KEY="sk-x") == []


def test_the_password_of_a_store_is_asked_for_too(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text().replace("{path: papers}", "{path: papers, store: 'postgresql://me:${DB_WORD}@db/x'}"))
    [line] = advice(bundle_folder, "")

    assert "collections.papers.store: the variable DB_WORD is not set here" in line


def test_a_trail_without_keys_is_told(bundle_folder):
    lines = advice(bundle_folder, AUDIT)

    assert ["EKIBEN_AUDIT_KEY" in lines[0], "EKIBEN_AUDIT_TEXT_KEY" in lines[1], len(lines)] == [True, True, 2]


def test_a_trail_with_keys_is_not_told(bundle_folder):
    assert advice(bundle_folder, AUDIT, Settings(audit_key="k" * 16, audit_text_key="k" * 16)) == []


def test_a_budget_of_which_nothing_can_be_spent_is_told(bundle_folder):
    [line] = advice(bundle_folder, "tenants: {acme: {budget: {day: 1}}}\n")

    assert "tenants.acme.budget: no route has a price" in line


def test_a_budget_with_a_price_is_not_told(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text().replace("policy: open}", "policy: open, price: {prompt: 1}}"))

    assert advice(bundle_folder, "tenants: {acme: {budget: {day: 1}}}\n") == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EKIBEN_AUDIT_KEY", "hidden", "EKIBEN_AUDIT_KEY: at least 16 characters are needed"),
        ("EKIBEN_ENGINE_PORT", "hidden", "EKIBEN_ENGINE_PORT: Input should be a valid integer"),
        (
            "EKIBEN_REDIS_URL",
            "hidden:6379",
            "EKIBEN_REDIS_URL: a URL that begins with redis:// or rediss:// or unix:// is wanted",
        ),
        ("EKIBEN_ALERT_WEBHOOK", "hidden", "EKIBEN_ALERT_WEBHOOK: a URL that begins with http:// or https:// is wanted"),
        ("EKIBEN_DEVICE", "hidden", "EKIBEN_DEVICE: Input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_and_its_value_is_not(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value).startswith(says)
    assert "hidden" not in str(caught.value)
