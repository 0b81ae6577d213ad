"""What a training under way must remember to go on after being killed, as one file that is replaced whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FILE = "checkpoint.pt"


class CheckpointError(RuntimeError):
    """A checkpoint that this training cannot go on from; the message says what to do."""


@dataclass
class State:
    """Where a training is: `step` optimizer steps are done. Order of the rows and position in the epoch follow from it."""

    recipe: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    rng: torch.Tensor | None = None

    @property
    def best_loss(self) -> float:
        """The smallest held-out loss so far, in nats a token."""
        return min((loss for _, loss in self.held_out), default=float("inf"))


def save(state: State, folder: Path) -> None:
    """Replace the folder's checkpoint: whoever is killed here leaves the old one or the new one, never half of one."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    torch.save({name: getattr(state, name) for name in state.__dataclass_fields__}, part)
    part.replace(folder / FILE)


def load(folder: Path) -> State | None:
    """Return the folder's checkpoint, or None where there is none; raises CheckpointError when it cannot be read."""
    import torch

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return State(**torch.load(path, weights_only=True))
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}); begin anew with --fresh") from error


def discard(folder: Path) -> None:
    """Remove the folder's checkpoint, if there is one."""
    (folder / FILE).unlink(missing_ok=True)
    (folder / f"{FILE}.part").unlink(missing_ok=True)
