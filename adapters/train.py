"""Train a LoRA adapter on rows of {"text", "label"}; `ekiben adapter train` is its command.

The loss covers the answer only. Everything random follows from the seed. Killed, it goes on from its last checkpoint, and ends
with the weights that it would have had. It stops early when held-out rows get no better, and keeps the weights that did best.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters import checkpoint
from adapters.batching import Example, answer_loss, collate, common_prefix, encode, plain_loss
from adapters.checkpoint import CheckpointError, State
from adapters.fitting import Outcome, Progress, fit
from adapters.lora import add_lora, write_lora
from adapters.recipe import Recipe, TrainingError
from adapters.rows import Row


def require_tools() -> None:
    """Raise TrainingError unless what training needs is installed."""
    missing = [name for name in ("torch", "transformers", "peft", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}: install the group `train` of pyproject.toml, in the project's folder with "
            "`make .venv/.dev` or `uv pip install --group train`"
        )


def train(
    base: Path, base_source: str, rows: list[Row], held_out: list[Row], system: str, recipe: Recipe, out: Path, progress: Progress
) -> Outcome:
    """Train and write PEFT's two files into `out`; goes on from a checkpoint that stands there, and leaves it there.

    Raises TrainingError and CheckpointError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    state = checkpoint.load(out)
    given = {**asdict(recipe), "base": base_source, "system": system, "rows": _digest(rows), "held_out": _digest(held_out)}
    if state is not None and (other := [key for key, value in given.items() if state.recipe.get(key) != value]):
        raise CheckpointError(
            f"{out / checkpoint.FILE} was made with another {', '.join(other)}; give the same, or begin anew with --fresh"
        )
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, recipe.compute))
    end = model.generation_config.eos_token_id or model.config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    examples = [encode(tokenizer, system, row, end) for row in rows + held_out]
    _check_lengths(examples, rows + held_out, model.config.max_position_embeddings)
    check_loss(model, examples[:4])
    model = add_lora(model, recipe)
    outcome = fit(model, examples[: len(rows)], examples[len(rows) :], recipe, state or State(given), out, progress)
    write_lora(model, base_source, out)
    return outcome


def check_loss(model: Any, examples: list[Example]) -> None:
    """Raise TrainingError when this architecture does more to its logits than the fast loss knows (scaling, capping)."""
    import torch

    model.eval()
    with torch.no_grad():
        fast = answer_loss(model, collate(examples, common_prefix(examples))).item()
        plain = plain_loss(model, examples).item()
    if abs(fast - plain) > 0.02 * max(plain, 1.0):
        raise TrainingError(
            f"the loss over the answers is {fast:.4f}, the model's own {plain:.4f}: {type(model).__name__} treats its logits "
            "in a way that this trainer does not know; train it with PEFT itself"
        )


def _check_lengths(examples: list[Example], rows: list[Row], most: int) -> None:
    for example, row in zip(examples, rows, strict=True):
        if len(example.ids) > most:
            raise TrainingError(f"the row that begins with {row.text[:40]!r} has {len(example.ids)} tokens, longer than {most}")


def _digest(rows: list[Row]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()
