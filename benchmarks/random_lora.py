"""Random LoRA adapters in PEFT's format: no training, and answers that tell one from another."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path, *, model: Path, seed: int, rank: int, targets: Collection[str] = LINEAR, strength: float = 0.5
) -> Path:
    """Write an adapter for the Llama-shaped model in the folder `model`, and return its folder.

    `strength` is the standard deviation of what an adapted layer adds for an input of unit variance.
    """
    config = json.loads((model / "config.json").read_bytes())
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for target, (inputs, outputs) in _shapes(config).items():
            if target not in targets:
                continue
            block = "self_attn" if target in {"q_proj", "k_proj", "v_proj", "o_proj"} else "mlp"
            key = f"base_model.model.model.layers.{layer}.{block}.{target}"
            a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            b = torch.randn(outputs, rank, generator=generator) * (strength / rank**0.5)
            weights[f"{key}.lora_A.weight"], weights[f"{key}.lora_B.weight"] = a.bfloat16(), b.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": sorted(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return each linear layer's (inputs, outputs)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key), "o_proj": (query, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip
