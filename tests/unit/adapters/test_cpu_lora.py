"""The CPU kernel against a float32 reference that goes token by token."""

import pytest
import torch

from adapters.cpu_lora import add_lora, group_by_adapter

SLOTS, RANK, INPUT = 3, 8, 48


def reference(y, x, a, b, scale, slices, indices):
    out = y.clone()
    for token, slot in enumerate(indices.tolist()):
        if slot < 0:
            continue
        offset = 0
        for one_a, one_b, size in zip(a, b, slices, strict=True):
            out[token, offset : offset + size] += one_b[slot, 0] @ (one_a[slot, 0] @ x[token]) * scale
            offset += size
    return out


@pytest.mark.parametrize("slices", [(48,), (48, 16, 16), (96, 96)])
@pytest.mark.parametrize(
    "indices",
    [[-1, -1, -1], [0, 0, 0], [2, -1, 0, 1, -1, 2], [1], [-1], [], [0] * 40 + [-1] * 40 + [2] * 3],
)
def test_equals_the_reference(slices, indices):
    torch.manual_seed(1)
    indices = torch.tensor(indices, dtype=torch.long)
    x, y = torch.randn(len(indices), INPUT), torch.randn(len(indices), sum(slices) + 4)
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUT) for _ in slices)
    b = tuple(torch.randn(SLOTS, 1, size, RANK) for size in slices)
    expected = reference(y, x, a, b, 0.5, slices, indices)
    add_lora(y, x, a, b, 0.5, slices, group_by_adapter(indices))

    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_tokens_without_an_adapter_are_not_touched_at_all():
    """Stock vLLM 0.32.0 takes index -1 for the last slot."""
    x, y = torch.randn(4, INPUT), torch.zeros(4, 16)
    a, b = (torch.ones(SLOTS, 1, RANK, INPUT),), (torch.ones(SLOTS, 1, 16, RANK),)
    add_lora(y, x, a, b, 1.0, (16,), group_by_adapter(torch.tensor([-1, 2, -1, 2])))

    assert not y[[0, 2]].any()
    assert y[[1, 3]].all()


def test_half_precision_stays_near():
    torch.manual_seed(2)
    indices = torch.tensor([0, -1, 1, 1])
    x, y = torch.randn(4, INPUT), torch.randn(4, 16)
    a, b = (torch.randn(SLOTS, 1, RANK, INPUT) / 8,), (torch.randn(SLOTS, 1, 16, RANK) / 8,)
    expected = reference(y, x, a, b, 2.0, (16,), indices)
    half = y.bfloat16()
    add_lora(half, x.bfloat16(), (a[0].bfloat16(),), (b[0].bfloat16(),), 2.0, (16,), group_by_adapter(indices))

    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
