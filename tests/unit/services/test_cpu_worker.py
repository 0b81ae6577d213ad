"""A seeded request's generator is as if the token that is thrown away had never been drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from services.cpu_worker import adapter_slots, keep_seeds


class Batch:
    def __init__(self, seeds):
        self.num_reqs = 4
        self.generators = {i: torch.Generator().manual_seed(seed) for i, seed in seeds.items()}


def make_runner():
    """Return a runner that samples as vLLM's does; its own turning back fails on a CPU's generators, as theirs does."""

    class Runner:
        def __init__(self):
            self.input_batch = Batch({0: 1, 1: 2, 3: 3})
            # Longer than the batch: what is left of an earlier one says nothing.
            self.discard_request_mask = SimpleNamespace(np=np.array([True, False, True, False, True, True]))
            self.seen = None

        def _sample(self, scale, *, shift=0.0):
            drawn = {i: torch.rand(1, generator=g).item() * scale + shift for i, g in self.input_batch.generators.items()}
            if scale == 0:
                raise RuntimeError
            return drawn

        def _bookkeeping_sync(self, output, *, fail=False):
            self.seen = set(self.input_batch.generators)
            for i in self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]:
                if (generator := self.input_batch.generators.get(int(i))) is not None:
                    generator.set_offset(generator.get_offset() - 4)
            if fail:
                raise KeyError
            return output

    return Runner


@pytest.fixture
def runner():
    kind = make_runner()
    keep_seeds(kind)
    return kind()


def states(runner):
    return {i: generator.get_state() for i, generator in runner.input_batch.generators.items()}


def test_the_stock_runner_fails():
    runner = make_runner()()
    with pytest.raises(RuntimeError, match="offset"):
        runner._bookkeeping_sync(runner._sample(1.0))


def test_only_what_is_thrown_away_is_turned_back(runner):
    before = states(runner)
    first = runner._sample(1.0)
    after = states(runner)

    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    assert not torch.equal(after[3], before[3])
    second = runner._sample(1.0)
    assert second[0] == first[0]
    assert second[1] != first[1]


def test_what_the_stock_methods_are_given_and_return_passes_through(runner):
    drawn = runner._sample(2.0, shift=5.0)

    assert all(5 <= value <= 7 for value in drawn.values())
    assert runner._bookkeeping_sync("output") == "output"


def test_what_is_thrown_away_is_hidden_from_the_bookkeeping_and_put_back(runner):
    generators = dict(runner.input_batch.generators)
    runner._bookkeeping_sync(runner._sample(1.0))

    assert runner.seen == {1, 3}
    assert runner.input_batch.generators == generators
    with pytest.raises(KeyError):
        runner._bookkeeping_sync("output", fail=True)
    assert runner.input_batch.generators == generators


def test_without_seeds_nothing_is_touched(runner):
    runner.input_batch.generators = {}

    assert runner._sample(1.0) == {}
    assert runner._bookkeeping_sync("output") == "output"
    assert runner.input_batch.generators == {}


def test_the_slots_of_adapters_are_found_in_layers_of_every_form():
    model = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(3)))
    slices, whole = (torch.zeros(2), torch.zeros(3)), torch.zeros(4)
    model[0].lora_a_stacked, model[0].lora_b_stacked = slices, [torch.zeros(5)]
    model[1].lora_a_stacked, model[1].lora_b_stacked = whole, None

    assert [len(tensor) for tensor in adapter_slots(model)] == [2, 3, 5, 4]
