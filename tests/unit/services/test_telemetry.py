"""What the metrics say of routes and adapters."""

import pytest

from services.telemetry import Telemetry

ONE, TWO = ("box-adapter-travel:" + digit * 16 for digit in "12")


@pytest.fixture
def info(registry, adapted):
    def read():
        [family] = [family for family in registry.collect() if family.name == "llm_model_info"]
        return {(s.labels["model"], s.labels["adapter"]): s.value for s in family.samples}

    return read


def test_each_version_that_may_answer_is_announced_and_taken_back(adapted, info):
    telemetry: Telemetry = adapted.telemetry
    routes = [adapted.routes.all[name] for name in ("chat", "split")]
    telemetry.routes(routes, lambda shares: [ONE, TWO][: len(shares)])
    assert info() == {("chat", ""): 1, ("split", ONE): 1, ("split", TWO): 1}

    telemetry.routes(routes, lambda shares: [TWO] if shares else [])
    assert info() == {("chat", ""): 1, ("split", ONE): 0, ("split", TWO): 1}

    telemetry.routes(routes, lambda shares: [ONE] if shares else [])
    assert info() == {("chat", ""): 1, ("split", ONE): 1, ("split", TWO): 0}


def test_slots(registry):
    telemetry = Telemetry(registry)
    telemetry.slots(4, {"a": 2, "b": 0}, 1)
    telemetry.adapter_change("a", "ok", 0.3)
    telemetry.adapter_evicted("a")

    value = registry.get_sample_value
    assert (value("llm_adapter_slots"), value("llm_adapter_slots_pinned")) == (4, 1)
    assert value("llm_adapter_versions_loaded", {"adapter": "a"}) == 2
    assert value("llm_adapter_versions_loaded", {"adapter": "b"}) == 0
    assert value("llm_adapter_load_duration_seconds_sum", {"adapter": "a", "outcome": "ok"}) == 0.3
    assert value("llm_adapter_evictions_total", {"adapter": "a"}) == 1
