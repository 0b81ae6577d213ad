"""The settings of a training, and the number format that this processor is faster in."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

Compute = Literal["float32", "bfloat16"]


class TrainingError(RuntimeError):
    """A training that cannot be done; the message says what to change."""


@dataclass(frozen=True)
class Recipe:
    """All settings that the weights are a function of, beside base model, rows and system prompt.

    `warmup` is a share of the steps, `checks` are held-out measurements an epoch, and training stops when `patience` of them
    brought nothing better.
    """

    rank: int = 16
    alpha: int = 32
    rslora: bool = False
    dropout: float = 0.0
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 7
    checks: int = 3
    patience: int = 3
    compute: Compute = "float32"


def faster_compute() -> Compute:
    """Measure which of two number formats this processor multiplies faster: without AMX, float32 may win by far."""
    import torch

    seconds: dict[torch.dtype, float] = {}
    for _ in range(5):
        for dtype in (torch.float32, torch.bfloat16):
            left, right = torch.ones((1024, 576), dtype=dtype), torch.ones((1536, 576), dtype=dtype)
            began = time.perf_counter()
            for _ in range(4):
                torch.mm(left, right.T)
            seconds[dtype] = min(time.perf_counter() - began, seconds.get(dtype, float("inf")))
    return "bfloat16" if seconds[torch.bfloat16] < 0.9 * seconds[torch.float32] else "float32"
