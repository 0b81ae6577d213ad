"""Limits, prices, targets, cache and trail in bundle.yaml: every mistake has its line and a remedy."""

from decimal import Decimal

import pytest

from services.bundle import BundleError, load_bundle

TERMS = """
tenants:
  acme: {limits: {requests_per_minute: 60}, budget: {day: 2.50}, weight: 2}
upstreams:
  big:
    url: https://api.example.com
    key: ${BIG_KEY}
currency: EUR
alerts: {share: 0.5}
audit: {enabled: true, texts: masked}
"""
ROUTE = """
  both:
    prompt: plain
    policy: open
    price: {prompt: 0.15, completion: 0.6}
    cache: {semantic: true, max_wrong: 0.02}
    targets:
      strategy: complexity
      of:
        - {}
        - {upstream: big, model: large, price: {prompt: "2.5", completion: 10}}
      thresholds: [0.7]
"""


@pytest.fixture
def bundle(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text() + ROUTE + TERMS)
    return path


def test_prices_are_exact_however_they_are_written(bundle):
    route = load_bundle(bundle).bundle.routes["both"]

    assert route.price.prompt == Decimal("0.15")
    assert route.targets.of[1].price.prompt == Decimal("2.5")


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("upstream: big, model", "upstream: bog, model", "- {upstream: bog", "no upstream named 'bog'; there is: big"),
        ("upstream: big, model: large", "upstream: big", "- {upstream: big", "name both, or neither for the box's own engine"),
        ("upstream: big, model: large", "weight: 2", "- {weight: 2", "the own engine stands twice; raise its weight"),
        ("      thresholds: [0.7]\n", "", "targets:", "2 targets need 1, and there are 0; `ekiben route eval` measures"),
        ("[0.7]", "[7]", "targets:", "thresholds lie between 0 and 1, and ascend"),
        ("strategy: complexity", "strategy: fixed", "targets:", "thresholds are for strategy complexity; leave them out"),
        ("strategy: complexity", "strategy: hardest", "strategy: hardest", "'fixed', 'weighted', 'least-busy'"),
        ("of:\n", "latency_seconds: 2\n      of:\n", "targets:", "latency_seconds is for strategy cheapest; leave it out"),
        ("https://api.example.com", "api.example.com", "url: api", "a URL begins with http:// or https://"),
        ("https://api.example.com", "https://api.example.com/v1", "  big:", "leave /v1 out: it is added"),
        ("https://api.example.com", "https://me:pw@api.example.com", "  big:", "the key has a field of its own"),
        ("${BIG_KEY}", "sk-hidden", "key: sk", "would be packed with it; write ${VARIABLE}"),
        ("{share: 0.5}", "{webhook: 'https://hooks.example.com/x'}", "alerts:", "EKIBEN_ALERT_WEBHOOK"),
        ("{share: 0.5}", "{share: 80}", "alerts:", "less than or equal to 1 (got 80)"),
        ("currency: EUR", "currency: euro", "currency:", "three capitals, such as USD or EUR (got 'euro')"),
        ("prompt: 0.15,", "prompt: 0.15 EUR,", "price: {prompt: 0.15", "valid decimal"),
        ("prompt: 0.15,", "prompt: 0.1234567891,", "price: {prompt: 0.1", "no more than 9 decimal places"),
        ("prompt: 0.15,", "prompt: -1,", "price: {prompt: -1", "greater than or equal to 0"),
        ("prompt: 0.15,", "input: 0.15,", "price: {input", "unknown key 'input'"),
        ("{requests_per_minute: 60}", "{requests_per_minute: 0}", "acme:", "0 would let nobody in; leave it out"),
        ("{requests_per_minute: 60}", "{rpm: 60}", "acme:", "unknown key 'rpm'"),
        ("weight: 2}", "weight: 0}", "acme:", "greater than or equal to 1 (got 0)"),
        ("max_wrong: 0.02", "max_wrong: 0.001", "cache:", "greater than or equal to 0.005"),
        ("enabled: true, texts", "texts", "audit:", "write enabled: true beside them"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_do(bundle, old, new, at, says):
    text = bundle.read_text()
    assert text.count(old) == 1
    bundle.write_text(text.replace(old, new))
    line = next(n for n, one in enumerate(bundle.read_text().splitlines(), 1) if at in one)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)

    assert any(one.startswith(f"{bundle}:{line}: ") and says in one for one in caught.value.lines), caught.value.lines
    assert "hidden" not in str(caught.value)
