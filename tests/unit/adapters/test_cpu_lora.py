"""The CPU kernel against a float32 reference that goes token by token."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import cpu_lora
from adapters.cpu_lora import MANY_TOKENS, Pack, Step, adopt

SLOTS, RANK, INPUT = 4, 8, 48
SHAPES = [(48,), (48, 16, 16), (96, 96), (32, 16)]


class Layer:
    """A LoRA layer as vLLM makes it: zeros for every slot, filled and emptied by index."""

    def __init__(self, sizes, dtype=torch.float32):
        self.lora_a_stacked = tuple(torch.zeros(SLOTS, 1, RANK, INPUT, dtype=dtype) for _ in sizes)
        self.lora_b_stacked = tuple(torch.zeros(SLOTS, 1, size, RANK, dtype=dtype) for size in sizes)

    def reset_lora(self, index):
        for one in (*self.lora_a_stacked, *self.lora_b_stacked):
            one[index] = 0

    def set_lora(self, index, lora_a, lora_b):
        self.reset_lora(index)
        for stacked, given_ in ((self.lora_a_stacked, lora_a), (self.lora_b_stacked, lora_b)):
            for one, weights in zip(stacked, given_, strict=True):
                if weights is not None:
                    one[index, 0, : weights.shape[0], : weights.shape[1]].copy_(weights)


def filled(sizes, slots=(0, 1, 2, 3), rank=RANK):
    """A layer in which some slots hold an adapter, and those adapters."""
    layer, adapters = adopt(Layer(sizes)), {}
    for slot in slots:
        a = [torch.randn(rank, INPUT) for _ in sizes]
        b = [torch.randn(size, rank) for size in sizes]
        layer.set_lora(slot, a, b)
        adapters[slot] = (a, b)
    return layer, adapters


def reference(y, x, sizes, adapters, indices):
    out = y.float().clone()
    for token, slot in enumerate(indices):
        if slot not in adapters:
            continue
        offset = 0
        for a, b, size in zip(*adapters[slot], sizes, strict=True):
            out[token, offset : offset + size] += b @ (a @ x[token].float())
            offset += size
    return out


def add(layer, y, x, indices):
    cpu_lora._steps["tokens"] = Step(torch.tensor(indices, dtype=torch.long))
    cpu_lora.add_lora(y, x, layer.lora_a_stacked[0], "tokens")


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize(
    "indices",
    [
        [], [-1], [1], [-1, -1, -1], [0, 0, 0], [2, -1, 0, 1, -1, 2], [3, 0], [0] * MANY_TOKENS, [1] * 1200,
        [0] * 40 + [-1] * 40 + [2] * 3, [-1] + [1] * MANY_TOKENS + [1, 2] * 4 + [3] * 70, [0, 1, 2, 3] * 16,
    ],
)  # fmt: skip
def test_equals_the_reference(sizes, indices):
    torch.manual_seed(1)
    layer, adapters = filled(sizes)
    x, y = torch.randn(len(indices), INPUT), torch.randn(len(indices), sum(sizes))
    expected = reference(y, x, sizes, adapters, indices)
    add(layer, y, x, indices)

    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.sampled_from(SHAPES),
    slots=st.sets(st.integers(0, SLOTS - 1)),
    runs=st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 200)), max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_any_mix_equals_the_reference(sizes, slots, runs, dtype, seed):
    """Prompts and single tokens, slots with and without an adapter, in any order."""
    torch.manual_seed(seed)
    layer, adapters = filled(sizes, slots)
    indices = [slot for slot, length in runs for _ in range(length)]
    x, y = torch.randn(len(indices), INPUT).to(dtype), torch.randn(len(indices), sum(sizes)).to(dtype)
    before = y.clone()
    expected = reference(y, x, sizes, adapters, indices)
    add(layer, y, x, indices)

    near = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1.0}
    torch.testing.assert_close(y.float(), expected, **near)
    untouched = [token for token, slot in enumerate(indices) if slot not in slots]
    assert torch.equal(y[untouched], before[untouched])


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="MKL's promise is not known of others")
@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(576, (576, 192, 192)), (1536, (576,)), (576, (1536, 1536))]),
    runs=st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 250)), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_a_token_has_the_same_bits_alone_and_in_any_company(shape, runs, seed):
    torch.manual_seed(seed)
    inputs, sizes = shape
    pack = Pack(4, 16, inputs, sizes)
    pack.a.normal_()
    pack.b.normal_()
    pack.used = {0, 1, 2, 3}
    indices = [slot for slot, length in runs for _ in range(length)]
    x, y = torch.randn(len(indices), inputs).bfloat16(), torch.zeros(len(indices), sum(sizes)).bfloat16()
    alone = torch.zeros_like(y)
    pack.add(y, x, Step(torch.tensor(indices)))
    for token in range(0, len(indices), 23):
        row = slice(token, token + 1)
        pack.add(alone[row], x[row], Step(torch.tensor(indices[row])))

        assert torch.equal(alone[row], y[row])


@pytest.mark.parametrize("rest", [[2], [2] * MANY_TOKENS, [0, 2] * 20])
def test_tokens_without_an_adapter_are_not_touched_even_by_infinite_weights(rest):
    """Stock vLLM 0.32.0 takes index -1 for the last slot."""
    layer, _ = filled((16,), slots=[2])
    layer.set_lora(0, [torch.full((RANK, INPUT), 3e38)], [torch.ones(16, RANK)])
    indices = [-1, *rest, -1, 2]
    x, y = torch.ones(len(indices), INPUT), torch.zeros(len(indices), 16)
    add(layer, y, x, indices)

    assert not y[[0, -2]].any()
    assert y[-1].isfinite().all()
    assert y[-1].any()


def test_an_emptied_slot_adds_nothing_and_a_smaller_rank_leaves_nothing_behind():
    torch.manual_seed(3)
    layer, _ = filled((16, 16))
    small = ([torch.randn(2, INPUT), None], [torch.randn(16, 2), None])
    layer.set_lora(1, *small)
    layer.reset_lora(3)
    x, y = torch.randn(3, INPUT), torch.zeros(3, 32)
    add(layer, y, x, [1, 3, 1])

    assert not y[1].any()
    assert not y[:, 16:].any()
    torch.testing.assert_close(y[[0, 2], :16], x[[0, 2]] @ small[0][0].T @ small[1][0].T, rtol=1e-4, atol=1e-4)


def test_the_logits_of_rows_that_are_no_samples_are_refused():
    layer, _ = filled((16,))
    cpu_lora._steps["samples"] = Step(torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="2 samples, the layer was given 3 rows"):
        cpu_lora.add_lora(torch.zeros(3, 16), torch.zeros(3, INPUT), layer.lora_a_stacked[0], "samples")


def test_grouping_happens_once_a_step(monkeypatch):
    made = []
    monkeypatch.setattr(Step, "_group", lambda self, slots: made.append(slots) or cpu_lora.Groups([], None))
    step = Step(torch.tensor([0, 1, -1]))
    for _ in range(5):
        step.groups(frozenset({0, 1, 2, 3}))
    step.groups(frozenset({0}))

    assert made == [{0, 1}, {0}]


def test_compiled_and_eager_give_the_same():
    """The operator is one node of the graph: a change of the batch's mix compiles nothing anew."""
    torch.manual_seed(4)
    layer, adapters = filled((16, 8))
    key = layer.lora_a_stacked[0]
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=count, fullgraph=True, dynamic=True)
    def forward(x, y):
        y = y * 2
        torch.ops.ekiben.add_lora(y, x, key, "tokens")
        return y + 1

    for indices in ([0, 1, -1, 2], [3, 3, 3, -1], [-1, -1, -1, -1]):
        x, y = torch.randn(4, INPUT), torch.randn(4, 24)
        cpu_lora._steps["tokens"] = Step(torch.tensor(indices))
        torch.testing.assert_close(forward(x, y), reference(y * 2, x, (16, 8), adapters, indices) + 1, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


def test_a_pack_shows_its_slices_over_one_memory():
    pack = Pack(SLOTS, RANK, INPUT, (32, 16))
    a, b = pack.views()

    assert [one.shape for one in a] == [(SLOTS, 1, RANK, INPUT)] * 2
    assert [one.shape for one in b] == [(SLOTS, 1, 32, RANK), (SLOTS, 1, 16, RANK)]
    b[1][2, 0] = 1
    assert pack.b.sum() == 16 * RANK
    assert pack.b[2, RANK:, 32:].all()


def test_a_vllm_that_was_not_checked_is_refused():
    """In a process of its own: the refusal comes while vLLM's worker imports the file."""
    code = "import vllm; vllm.__version__ = '0.99.0'; import services.cpu_worker"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "checked with vLLM 0.32.0, this is 0.99.0" in done.stderr
