"""PEFT's LoRA: put on a model, and written as the two files that vLLM reads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from adapters.manifest import CONFIG, WEIGHTS
from adapters.recipe import Recipe

if TYPE_CHECKING:
    import torch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: Any, recipe: Recipe) -> Any:
    """Return the model with fresh LoRA weights in float32, which alone will be trained; the seed decides them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear

    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, use_rslora=recipe.rslora,
        target_modules=list(TARGETS), task_type="CAUSAL_LM",
    )  # fmt: skip
    lora = get_peft_model(model, config)
    if recipe.dropout == 0:
        for layer in lora.modules():
            if isinstance(layer, Linear):
                layer.forward = MethodType(_fused_forward, layer)
    return lora


def _fused_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """PEFT's forward of one adapter without dropout, with scaling and sum inside the product: a tenth of a step is saved."""
    import torch

    y = layer.base_layer(x)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    small = torch.nn.functional.linear(x, down).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), small, up.T, alpha=layer.scaling["default"]).view_as(y)


def write_lora(model: Any, base_source: str, folder: Path) -> None:
    """Write configuration and weights, in bfloat16; each file is replaced whole."""
    import torch

    saved: Any = model.peft_config["default"]
    saved.base_model_name_or_path = base_source  # not a path of this machine
    saved.target_modules = sorted(TARGETS)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        # LoRA alone; asked for embeddings, PEFT would look for the base on a hub.
        model.to(torch.bfloat16).save_pretrained(part, save_embedding_layers=False)
        for name in (CONFIG, WEIGHTS):
            (Path(part) / name).replace(folder / name)
