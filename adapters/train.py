"""Train a LoRA adapter with PEFT on rows of {"text", "label"}; `ekiben adapter train` is its command.

The loss covers the answer only. Everything random follows from the seed. Killed, it goes on from its last checkpoint, and ends
with the weights that it would have had. It stops early when held-out rows get no better, and keeps the weights that did best.
"""

from __future__ import annotations

import importlib.util
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from adapters import checkpoint
from adapters.batching import Example, answer_logits, answer_loss, batches, collate, common_prefix, encode, plain_loss
from adapters.checkpoint import CheckpointError, State
from adapters.manifest import CONFIG, WEIGHTS
from adapters.rows import Row

if TYPE_CHECKING:
    import torch

Compute = Literal["float32", "bfloat16"]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainingError(RuntimeError):
    """A training that cannot be done; the message says what to change."""


class Progress(Protocol):
    """What training tells of its work."""

    def tell(self, text: str, done: float, total: float) -> None:
        """The work has come this far."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


@dataclass(frozen=True)
class Recipe:
    """All settings that the weights are a function of, beside base model, rows and system prompt."""

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


@dataclass(frozen=True)
class Outcome:
    """What a training gave: its history, and the seconds and threads that it took."""

    state: State
    steps: int
    threads: int
    trained_on: int
    held_out: int


def require_tools() -> None:
    """Raise TrainingError unless what training needs is installed."""
    missing = [name for name in ("torch", "transformers", "peft", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}: install the group `train` of pyproject.toml, in the project's folder with "
            "`make .venv/.dev` or `uv pip install --group train`"
        )


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


def train(
    base: Path, base_source: str, rows: list[Row], held_out: list[Row], system: str, recipe: Recipe, out: Path, progress: Progress
) -> Outcome:
    """Train and write PEFT's two files into `out`; goes on from a checkpoint that stands there.

    Raises TrainingError and CheckpointError. The checkpoint stays: remove it once the manifest is written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    state = checkpoint.load(out)
    given = {**asdict(recipe), "base": base_source, "system": system, "rows": _digest(rows), "held_out": _digest(held_out)}
    if state is not None and (other := [key for key, value in given.items() if state.recipe.get(key) != value]):
        raise CheckpointError(
            f"{out / checkpoint.FILE} was made with another {', '.join(other)}; give the same, or begin anew with --fresh"
        )
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, recipe.compute))
    end = model.generation_config.eos_token_id or model.config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    examples = [[encode(tokenizer, system, row, end) for row in part] for part in (rows, held_out)]
    _check_lengths(examples[0] + examples[1], rows + held_out, model.config.max_position_embeddings)
    check_loss(model, examples[0][:4])
    model = add_lora(model, recipe)
    outcome = fit(model, examples[0], examples[1], recipe, state or State(given), out, progress)
    _write(model, base_source, out)
    return outcome


def _digest(rows: list[Row]) -> str:
    import hashlib

    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _check_lengths(examples: list[Example], rows: list[Row], most: int) -> None:
    for example, row in zip(examples, rows, strict=True):
        if len(example.ids) > most:
            raise TrainingError(f"the row that begins with {row.text[:40]!r} has {len(example.ids)} tokens, longer than {most}")


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
    """PEFT's forward of one adapter without dropout, as one product that adds: a tenth of a step is saved."""
    import torch

    y = layer.base_layer(x)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    small = torch.nn.functional.linear(x, down).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), small, up.T, alpha=layer.scaling["default"]).view_as(y)


def fit(
    model: Any, examples: list[Example], held_out: list[Example], recipe: Recipe, state: State, folder: Path, progress: Progress,
    *, checkpoint_steps: int = 25,
) -> Outcome:  # fmt: skip
    """Train the LoRA weights of a PEFT model from where `state` is; at the end the model has the best weights."""
    import torch

    core = model.get_base_model()
    common = common_prefix([*examples, *held_out])
    epoch_steps = len(batches(examples, recipe.batch, random.Random(0)))  # noqa: S311
    steps, check_steps = recipe.epochs * epoch_steps, max(1, epoch_steps // recipe.checks)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    warm = max(1, round(recipe.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0)
    )
    if state.step:
        _put(state.weights, weights)
        optimizer.load_state_dict(state.optimizer)
        schedule.load_state_dict(state.schedule)
        progress.note(f"going on from step {state.step} of {steps}")
    torch.manual_seed(recipe.seed) if state.rng is None else torch.set_rng_state(state.rng)
    groups: list[list[Example]] = []
    began = time.monotonic() - state.seconds
    while state.step < steps and not _exhausted(state, recipe.patience):
        epoch, position = divmod(state.step, epoch_steps)
        if not groups or position == 0:
            groups = batches(examples, recipe.batch, random.Random(f"{recipe.seed}:{epoch}"))  # noqa: S311
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.compute == "bfloat16"):
            loss = answer_loss(core, collate(groups[position], common))
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
        if state.step % checkpoint_steps == 0 or state.step == steps:
            state.weights, state.optimizer, state.schedule = _copy(weights), optimizer.state_dict(), schedule.state_dict()
            state.rng = torch.get_rng_state()
            checkpoint.save(state, folder)
        recent = state.losses[-20:]
        left = state.seconds / state.step * (steps - state.step) / 60
        progress.tell(
            f"epoch {epoch + 1} step {state.step}/{steps} loss {sum(recent) / len(recent):.4f}, at most {left:.0f} min left",
            state.step, steps,
        )  # fmt: skip
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
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.compute == "bfloat16"):
            logits = answer_logits(core, batch).float()
        total += torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").item()
        tokens += len(batch.targets)
        wrong = batch.positions[logits.argmax(-1) != batch.targets] // batch.ids.shape[1]
        right += len(batch.ids) - len(wrong.unique())
    return total / tokens, right / len(ordered)


def _exhausted(state: State, patience: int) -> bool:
    """Whether the last `patience` checks brought nothing better."""
    return sum(step > state.best_step for step, _ in state.held_out) >= patience


def _copy(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _put(source: dict[str, torch.Tensor], weights: dict[str, Any]) -> None:
    for name, weight in weights.items():
        weight.data.copy_(source[name])


def _write(model: Any, base_source: str, out: Path) -> None:
    """Write PEFT's two files in bfloat16, each replaced whole."""
    import tempfile

    import torch

    saved: Any = model.peft_config["default"]
    saved.base_model_name_or_path = base_source  # not a path of this machine
    saved.target_modules = sorted(TARGETS)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        # LoRA alone; asked for embeddings, PEFT would look for the base on a hub.
        model.to(torch.bfloat16).save_pretrained(part, save_embedding_layers=False)
        for name in (CONFIG, WEIGHTS):
            (Path(part) / name).replace(out / name)
