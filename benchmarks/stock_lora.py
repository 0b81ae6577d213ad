"""Stock vLLM's LoRA on a CPU without AMX: the one function mended that keeps it from starting, and no other.

There oneDNN takes the INT8 weight into memory of its own, the layer's is None, and stock vLLM 0.32.0 asks None for its device.
The kernels stay vLLM's own. vLLM loads this file by `--worker-extension-cls benchmarks.stock_lora.Mended`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch


class Mended:
    """The class that `--worker-extension-cls` names; vLLM mixes it into its worker."""


def mend() -> None:
    """Let `_get_lora_device` answer for layers whose weight oneDNN took."""
    from vllm.lora.layers import base_linear

    stock: Any = base_linear._get_lora_device  # noqa: SLF001  there is no public one

    def device(base_layer: Any) -> torch.device:
        return torch.device("cpu") if getattr(base_layer, "weight", base_layer) is None else stock(base_layer)

    base_linear._get_lora_device = device  # noqa: SLF001


# vLLM imports this file for its effect.
if "vllm" in sys.modules:
    mend()
