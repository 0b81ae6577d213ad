"""LoRA on a CPU engine, right in mixed batches: tokens are grouped by adapter, and index -1 means no adapter.

Stock vLLM 0.32.0 gathers a copy of the adapter's weights for every token, and takes index -1 for the last slot: requests of
the base model that share a batch with an adapter's are answered by the adapter (upstream pull requests 48421 and 49656).
Here each adapter that is really in the batch costs two small matrix products, and the base's tokens cost nothing.

vLLM loads this file by `--worker-extension-cls adapters.cpu_lora.GroupedLora`, before the model runs. CPU engines only.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

CHECKED_VERSION = "0.32.0"
Groups = list[tuple[int, torch.Tensor]]


def group_by_adapter(indices: torch.Tensor) -> Groups:
    """Return (slot, positions of its tokens) for each adapter in the batch; `indices` has shape (tokens,), -1 is none."""
    slots = torch.unique(indices)
    return [(slot, (indices == slot).nonzero().flatten()) for slot in slots.tolist() if slot >= 0]


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    groups: Groups,
) -> None:
    """Add each adapter's share to the rows of its tokens, in place.

    y (tokens, sum of output_slices or more), x (tokens, in); for slice i a_stacked[i] is (slots, 1, rank, in) and
    b_stacked[i] is (slots, 1, output_slices[i], rank).
    """
    for slot, rows in groups:
        whole = len(rows) == x.shape[0]
        part = x if whole else x.index_select(0, rows)
        offset = 0
        for a, b, size in zip(a_stacked, b_stacked, output_slices, strict=True):
            shrunk = (part @ a[slot, 0].T.to(part.dtype)) * scale
            share = (shrunk @ b[slot, 0].T.to(part.dtype)).to(y.dtype)
            target = y[:, offset : offset + size]
            if whole:
                target += share
            else:
                target.index_add_(0, rows, share)
            offset += size


def install() -> None:
    """Put the functions of this file in the place of vLLM's; raises RuntimeError on a vLLM they were not checked with."""
    import vllm
    from vllm.lora.layers import base_linear as stock_layers
    from vllm.lora.punica_wrapper import punica_cpu as stock_wrapper

    base_linear: Any = stock_layers
    wrapper: Any = stock_wrapper.PunicaWrapperCPU
    if not vllm.__version__.startswith(CHECKED_VERSION):
        msg = (
            f"adapters/cpu_lora.py was checked with vLLM {CHECKED_VERSION}, this is {vllm.__version__}; "
            "check it and raise the version"
        )
        raise RuntimeError(msg)
    stock_update = wrapper.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update(self, *args, **kwargs)
        self.ekiben_groups = group_by_adapter(self.token_lora_indices)
        self.ekiben_sampler_groups = group_by_adapter(self.sampler_indices)

    def add_lora_linear(
        self: Any, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: Any, lora_b_stacked: Any, scale: float,
        output_slices: Any, *, buffer: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        del buffer
        flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_lora(flat_y, flat_x, lora_a_stacked, lora_b_stacked, scale, output_slices, self.ekiben_groups)

    def add_lora_logits(
        self: Any, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor,
        scale: float, *, buffer: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        del buffer
        flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        size = min(lora_b_stacked.shape[-2], flat_y.shape[-1])
        add_lora(flat_y, flat_x, (lora_a_stacked,), (lora_b_stacked[:, :, :size],), scale, (size,), self.ekiben_sampler_groups)

    stock_device = base_linear._get_lora_device  # noqa: SLF001  there is no public one

    def get_lora_device(base_layer: Any) -> torch.device:
        # On a CPU without AMX the INT8 weight is packed into oneDNN's own memory and the layer's is None.
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return stock_device(base_layer)

    base_linear._get_lora_device = get_lora_device  # noqa: SLF001
    wrapper.ekiben_groups = []
    wrapper.ekiben_sampler_groups = []
    wrapper.update_metadata = update_metadata
    wrapper.add_lora_linear = add_lora_linear
    wrapper.add_lora_logits = add_lora_logits


class GroupedLora:
    """The class that `--worker-extension-cls` names; vLLM mixes it into its worker."""


# vLLM imports this file for its effect. The functions alone can be had without vLLM.
if "vllm" in sys.modules:
    install()
