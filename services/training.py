"""`ekiben adapter train`: from rows to an adapter folder that may be served.

The base that it is trained on is the bundle's model without quantization; it stays in the model store for the next training.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from adapters import checkpoint
from adapters.card import CARD, CURVE, write_card
from adapters.curve import draw_curve
from adapters.fitting import Outcome
from adapters.manifest import CONFIG, MANIFEST, WEIGHTS, Manifest, digest_file, write_manifest
from adapters.recipe import Compute, Recipe, TrainingError, faster_compute
from adapters.rows import Row, RowError, labels_of, read_rows, split_rows
from adapters.train import require_tools, train
from services.bundle import LoadedBundle
from services.packing import Progress as PackingProgress
from services.packing import pack_model
from services.store import stored_path


class Progress(PackingProgress, Protocol):
    """What training tells of its work."""

    def tell(self, text: str, done: float, total: float) -> None:
        """The step under way has come this far, and this is how it does."""
        ...


@dataclass(frozen=True)
class Assignment:
    """What to train, on what, and where it goes. `held_out` is a file of rows, or a share of `data`."""

    name: str
    data: Path
    dataset: str
    licence: str
    system_prompt: str
    out: Path
    held_out: Path | float
    recipe: Recipe
    compute: Compute | None = None
    base: Path | None = None
    fresh: bool = False
    overwrite: bool = False


def unquantized_base(loaded: LoadedBundle, progress: Progress) -> Path:
    """Return the folder of the bundle's model with recipe `none`, made and put into the model store unless it is there."""
    model = loaded.bundle.model
    plain = model.model_copy(update={"quantization": model.quantization.model_copy(update={"recipe": "none"})})
    return stored_path(pack_model(replace(loaded, bundle=loaded.bundle.model_copy(update={"model": plain})), progress))


def train_adapter(loaded: LoadedBundle, work: Assignment, progress: Progress) -> Manifest:
    """Train, and put weights, manifest, curve and card into `work.out`; until then all is in `NAME.training` beside it.

    An adapter that stands in `work.out` may be served meanwhile. Raises RowError, TrainingError and CheckpointError, and what
    making the base raises. After a kill, the same call goes on.
    """
    _check(loaded, work)
    rows, held_out = _rows(work)
    part = work.out.with_name(f"{work.out.name}.training")
    if work.fresh:
        checkpoint.discard(part)
    state = checkpoint.load(part)
    if state is None and (work.out / WEIGHTS).exists() and not work.overwrite:
        raise TrainingError(f"{work.out} holds an adapter already: take another --out, or --overwrite it")
    base = work.base or unquantized_base(loaded, progress)
    progress.step(f"training {work.name}: {len(rows)} rows, {len(held_out)} held out, {len(labels_of(rows))} labels")
    compute = state.recipe["compute"] if state else work.compute or faster_compute()
    recipe = replace(work.recipe, compute=compute)
    source = loaded.bundle.model.source
    outcome = train(base, source, rows, held_out, work.system_prompt, recipe, part, progress)
    history = outcome.state
    draw_curve(history.losses, history.held_out, history.best_step, part / CURVE, title=work.name)
    manifest = Manifest(
        name=work.name, base_source=source, dataset=work.dataset, system_prompt=work.system_prompt,
        sha256=digest_file(part / WEIGHTS), labels=labels_of(rows), training=_training(work, recipe, outcome),
    )  # fmt: skip
    write_manifest(part, manifest)
    write_card(part, manifest, licence=work.licence)
    work.out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS, MANIFEST, CARD, CURVE):
        (part / name).replace(work.out / name)
    shutil.rmtree(part)
    return manifest


def _check(loaded: LoadedBundle, work: Assignment) -> None:
    require_tools()
    most = loaded.bundle.engine.max_lora_rank
    if work.recipe.rank > most:
        raise TrainingError(f"rank {work.recipe.rank} is over engine.max_lora_rank={most} of the bundle; lower it or raise that")
    if work.base is not None and not (work.base / "config.json").is_file():
        raise TrainingError(f"{work.base} holds no config.json; --base is a folder of the unquantized model, or leave it out")


def _rows(work: Assignment) -> tuple[list[Row], list[Row]]:
    rows = read_rows(work.data)
    if not isinstance(work.held_out, Path):
        return split_rows(rows, work.held_out, work.recipe.seed)
    held_out = read_rows(work.held_out)
    if unknown := sorted(set(labels_of(held_out)) - set(labels_of(rows))):
        raise RowError(
            f"{work.held_out}: {work.data} has no rows of {', '.join(unknown)}; hold out rows of labels that are trained"
        )
    return rows, held_out


def _training(work: Assignment, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    state = outcome.state
    recent = state.losses[-20:]
    return {
        **asdict(recipe),
        "rows": outcome.trained_on,
        "rows_sha256": hashlib.sha256(work.data.read_bytes()).hexdigest(),
        "held_out_rows": outcome.held_out,
        "steps": outcome.steps,
        "steps_done": state.step,
        "best_step": state.best_step,
        "held_out_loss": round(state.best_loss, 4) if state.held_out else None,
        "final_loss": round(sum(recent) / len(recent), 4),
        "minutes": round(state.seconds / 60, 1),
        "cores": outcome.threads,
    }
