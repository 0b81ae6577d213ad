"""The benchmarks of the gateway: their figures, the server in vLLM's place, and the box that they serve."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from benchmarks import proxies, stand_in
from benchmarks.engine import Side as Engine
from benchmarks.gateway import Side, shares, summary
from benchmarks.overhead import CLIENTS, figures
from benchmarks.overhead import Side as Asked
from benchmarks.proxies import Front
from benchmarks.request_layer import app
from services.lock import read_lock
from services.measure import Measured

ENGINE = Engine("ours", [], {}, 0)


def side(name, rates, ttft):
    """A side whose rounds gave so many tokens a second; its streams began after these seconds."""
    bursts = [Measured(len(ttft), rate, 1, 1.0, ttft) for rate in rates]
    return Side(name, Front("http://nowhere", "m"), ENGINE, bursts)


def test_the_gateway_is_held_to_the_engine_of_the_same_round():
    sides = {
        "engine": side("engine", (100, 200, 50), (0.1, 0.2, 0.3)), "stock": side("stock", (50, 50, 50), (0.1,)),
        "gateway": side("gateway", (90, 190, 40), (0.11, 0.205, 0.32)),
    }  # fmt: skip

    assert summary(sides) == {
        "throughput_vs_engine": 0.9, "throughput_vs_stock": 1.8, "added_ttft_ms_p50": 5.0, "added_ttft_ms_p99": 20.0,
        "litellm_throughput_vs_engine": "not installed",
    }  # fmt: skip
    sides["litellm"] = side("litellm", (80, 100, 20), (0.2, 0.4, 0.5))
    assert summary(sides)["litellm_throughput_vs_engine"] == 0.5
    assert summary(sides)["litellm_added_ttft_ms_p50"] == 200


@pytest.mark.parametrize(
    ("cores", "shared"),
    [
        ([0, 1, 2, 3], ([0, 1], [2], [3])), ([4, 5, 6], ([4, 5], [6], [6])), ([2, 3], ([2, 3], [2, 3], [2, 3])),
        ([7], ([7], [7], [7])),
    ],
)  # fmt: skip
def test_engines_have_processors_of_their_own_where_there_are_enough(cores, shared):
    assert shares(cores) == shared


def test_what_is_added_is_a_difference_of_percentiles(monkeypatch):
    def asked(ms, rate):
        times = {(streamed, clients): [m / 1000 for m in ms] for streamed in (False, True) for clients in CLIENTS}
        rates = {kind: [rate] for kind in times}
        return Asked("x", Front("http://nowhere", "m"), times, [0.001], rates, {False: 0.018, True: 0.036})

    monkeypatch.setattr(Front, "rss_mb", lambda _self: 100.0)
    told = figures(asked([3, 4, 9], 300.0), asked([1, 1, 2], 900.0))

    assert (told["added_ms_p50"], told["added_ms_p99"]) == (3, 7)
    assert (told["processor_ms"], told["stream_processor_ms"]) == (2, 4)
    assert (told["requests_per_second_32"], told["streams_per_second_8"], told["rss_mb"]) == (300, 300, 100)


async def test_the_stand_in_answers_whole_and_streamed():
    transport = httpx.ASGITransport(stand_in.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        whole = (await client.post("/v1/chat/completions", json={"max_tokens": 3})).json()
        streamed = (await client.post("/v1/chat/completions", json={"max_tokens": 3, "stream": True})).text
        models = (await client.get("/v1/models")).json()

    assert whole["choices"][0]["message"]["content"] == "word word word "
    assert streamed.count("word ") == 3
    assert streamed.endswith("data: [DONE]\n\n")
    assert models["data"] == []


async def test_the_box_lets_in_who_has_the_key_and_counts_and_remembers_and_writes_down(tmp_path, monkeypatch):
    monkeypatch.setattr("prometheus_client.REGISTRY", CollectorRegistry())
    monkeypatch.setattr("benchmarks.request_layer.configure_logs", lambda: None)
    for name, value in proxies.box(Front("http://127.0.0.1:1", "stand-in"), tmp_path).items():
        monkeypatch.setenv(name, value)
    secret = await proxies.new_key(f"sqlite:///{tmp_path / 'state' / 'ekiben.db'}")
    body = {"model": proxies.ROUTE, "messages": [{"role": "user", "content": "hi"}]}
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://box") as client:
            refused = await client.post("/v1/chat/completions", json=body)
            asked = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {secret}"})
        parts = app.state.parts
        assert parts.pipeline.accounting.ledger is not None
        assert list(parts.pipeline.caches) == [proxies.ROUTE]
        assert parts.pipeline.routes.find(proxies.ROUTE).targets.of[1].upstream == "spare"

    assert refused.status_code == 401
    assert asked.status_code == 503  # nobody answers there: but everything before was passed
    trail = "".join(path.read_text() for path in (tmp_path / "state" / "benchmark" / "audit").glob("*.jsonl"))
    assert '"outcome":"error"' in trail
    assert read_lock(tmp_path / "bundle.lock").name == "benchmark"
