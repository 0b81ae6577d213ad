"""The training loop: steps, checks on held-out rows, checkpoints, and the end.

Everything random follows from the seed and the step, so that a training that goes on from a checkpoint does what it would have
done without being killed.
"""

from __future__ import annotations

import math
import random
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapters import checkpoint
from adapters.batching import Example, answer_logits, answer_loss, batches, collate, common_prefix
from adapters.checkpoint import State
from adapters.recipe import Recipe, TrainingError

if TYPE_CHECKING:
    import torch

CHECKPOINT_STEPS = 25


class Progress(Protocol):
    """What training tells of its work."""

    def tell(self, text: str, done: float, total: float) -> None:
        """The work has come this far."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a training gave: its history, and on how many steps, threads and rows it was laid out."""

    state: State
    steps: int
    threads: int
    trained_on: int
    held_out: int


def fit(
    model: Any, examples: list[Example], held_out: list[Example], recipe: Recipe, state: State, folder: Path, progress: Progress
) -> Outcome:
    """Train the LoRA weights of a PEFT model from where `state` is; at the end the model has the best weights.

    Raises TrainingError when the loss is no number any more.
    """
    import torch

    core, common = model.get_base_model(), common_prefix([*examples, *held_out])
    epoch_steps = len(batches(examples, recipe.batch, random.Random(0)))  # noqa: S311  for their number
    steps, check_steps = recipe.epochs * epoch_steps, math.ceil(epoch_steps / recipe.checks)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = _schedule(optimizer, recipe, steps)
    torch.manual_seed(recipe.seed)
    if state.rng is not None:
        _put(state.weights, weights)
        optimizer.load_state_dict(state.optimizer)
        schedule.load_state_dict(state.schedule)
        torch.set_rng_state(state.rng)
        progress.note(f"going on from step {state.step} of {steps}")
    groups: list[list[Example]] = []
    began = time.monotonic() - state.seconds
    while state.step < steps and not _exhausted(state, recipe.patience):
        epoch, position = divmod(state.step, epoch_steps)
        if not groups or position == 0:
            groups = batches(examples, recipe.batch, random.Random(f"{recipe.seed}:{epoch}"))  # noqa: S311  not for security
        model.train()
        with _autocast(recipe):
            loss = answer_loss(core, collate(groups[position], common))
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} after {state.step} steps; lower --learning-rate, and begin with --fresh"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        state.step += 1
        state.losses.append(loss.item())
        if held_out and (state.step % check_steps == 0 or state.step == steps):
            held_loss, accuracy = measure(core, held_out, recipe, common)
            if held_loss < state.best_loss:
                state.best_step, state.best_weights = state.step, _copy(weights)
            state.held_out.append((state.step, held_loss))
            progress.note(f"step {state.step}/{steps}: held-out loss {held_loss:.4f}, accuracy {accuracy:.4f}")
        state.seconds = time.monotonic() - began
        if state.step % CHECKPOINT_STEPS == 0 or state.step == steps:
            state.weights, state.optimizer, state.schedule = _copy(weights), optimizer.state_dict(), schedule.state_dict()
            state.rng = torch.get_rng_state()
            checkpoint.save(state, folder)
        progress.tell(_line(state, epoch, steps), state.step, steps)
    if state.step < steps:
        progress.note(f"stopped early: no better held-out loss in {recipe.patience} checks; best was step {state.best_step}")
    if state.best_weights:
        _put(state.best_weights, weights)
    return Outcome(state, steps, torch.get_num_threads(), len(examples), len(held_out))


def measure(core: Any, examples: list[Example], recipe: Recipe, common: int) -> tuple[float, float]:
    """Return (loss in nats a token, share of examples whose every answer token is the likeliest: greedy decoding's accuracy)."""
    import torch

    core.eval()
    ordered = sorted(examples, key=lambda example: len(example.ids))
    total, tokens, right = 0.0, 0, 0
    for start in range(0, len(ordered), recipe.batch):
        batch = collate(ordered[start : start + recipe.batch], common)
        with torch.no_grad(), _autocast(recipe):
            logits = answer_logits(core, batch).float()
        total += torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").item()
        tokens += len(batch.targets)
        wrong = batch.positions[logits.argmax(-1) != batch.targets] // batch.ids.shape[1]
        right += len(batch.ids) - len(wrong.unique())
    return total / tokens, right / len(ordered)


def _schedule(optimizer: Any, recipe: Recipe, steps: int) -> Any:
    """A rise over the warm-up's share of the steps, then a straight line to zero."""
    from torch.optim.lr_scheduler import LambdaLR

    warm = max(1, round(recipe.warmup * steps))
    return LambdaLR(optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0))


def _autocast(recipe: Recipe) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.compute == "bfloat16")


def _exhausted(state: State, patience: int) -> bool:
    """Whether the last `patience` checks brought nothing better."""
    return sum(step > state.best_step for step, _ in state.held_out) >= patience


def _line(state: State, epoch: int, steps: int) -> str:
    recent = state.losses[-20:]
    left = state.seconds / state.step * (steps - state.step) / 60
    return f"epoch {epoch + 1} step {state.step}/{steps} loss {sum(recent) / len(recent):.4f}, at most {left:.0f} min left"


def _copy(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _put(source: dict[str, torch.Tensor], weights: dict[str, Any]) -> None:
    for name, weight in weights.items():
        weight.data.copy_(source[name])
