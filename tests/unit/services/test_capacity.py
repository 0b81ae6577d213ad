"""The load under which an engine is measured, without an engine."""

from types import SimpleNamespace

import pytest

from services import capacity
from services.capacity import ROUNDS, Load, loaded, stream_counts
from services.measure import Measured
from services.settings import load_settings

LOAD = Load(prompt_words=9, tokens=16, slo_ttft_ms=900)


class Heard:
    def __init__(self):
        self.steps, self.notes = [], []
        self.step, self.note = self.steps.append, self.notes.append


@pytest.fixture
def asked(monkeypatch):
    """Every burst that was sent; the first token of n streams takes n/8 to n/4 seconds, and the first burst is slow."""
    bursts = []

    async def measure(url, models, streams, tokens, *, prompt_words, seed):
        bursts.append((models, streams, tokens, prompt_words, seed))
        waits = tuple(streams / (8 if number % 2 else 4) for number in range(streams))
        rate = {1: 10, 2: 30, 3: 20}.get(seed % 100, 0.1)
        return Measured(streams=streams, tokens=tokens, prompt_tokens=9, seconds=tokens / rate / streams, ttft_seconds=waits)

    monkeypatch.setattr(capacity, "measure", measure)
    return bursts


async def load(counts):
    heard = Heard()
    return await loaded(SimpleNamespace(url="http://engine"), ["base", "tuned"], counts, LOAD, heard), heard


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (48, [1, 2, 4, 8, 16, 32, 48])]
)
def test_streams_double_up_to_the_engines_most(most, counts):
    assert stream_counts(most) == counts


async def test_a_step_is_warmed_and_then_its_bursts_are_put_together(asked):
    steps, heard = await load([1, 2])

    assert [(streams, tokens) for _, streams, tokens, _, _ in asked] == [(1, 8), *[(1, 16)] * 3, (2, 8), *[(2, 16)] * 3]
    assert [(step.streams, step.tokens_per_second) for step in steps] == [(1, 20), (2, 40)]
    assert (steps[0].ttft_p50_ms, steps[0].ttft_p95_ms) == (250, 250)
    assert (steps[1].ttft_p50_ms, steps[1].ttft_p95_ms) == (375, 500)
    assert (heard.steps[1], heard.notes[1]) == ("2 streams of 16 tokens", "  2 streams: 40 tokens/s, first token 375 / 500 ms")


async def test_no_prompt_is_sent_twice(asked):
    await load([1, 2, 4])

    assert len({seed for *_, seed in asked}) == len(asked) == 3 * (ROUNDS + 1)
    assert all(seed for *_, seed in asked), "0 is the first request's"


async def test_once_half_are_late_larger_numbers_are_left_out(asked):
    steps, _ = await load([2, 4, 6, 8, 16])

    waits = [(step.streams, step.ttft_p50_ms, step.ttft_p95_ms) for step in steps]
    assert waits == [(2, 375, 500), (4, 750, 1000), (6, 1125, 1500)]


def test_the_engine_is_started_as_it_is_served_and_needs_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("EKIBEN_ENGINE_KEY", "k" * 16)
    settings = load_settings().model_copy(update={"bundle": tmp_path / "box.yaml"})
    command = " ".join(capacity.engine_command(settings, 4321))

    assert command.endswith("-m services.cli engine serve")
    assert f"EKIBEN_BUNDLE={tmp_path}/box.yaml" in command
    assert "EKIBEN_ENGINE_PORT=4321" in command
    assert "-u EKIBEN_ENGINE_KEY" in command
    assert "k" * 16 not in command
