"""The learning curve as a picture."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

SMOOTHING = 0.9


def smooth(values: list[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start: one batch's loss says little."""
    sums = accumulate(values, lambda mean, value: SMOOTHING * mean + (1 - SMOOTHING) * value, initial=0.0)
    return [mean / (1 - SMOOTHING**step) for step, mean in enumerate(sums) if step]


def draw_curve(losses: list[float], held_out: list[tuple[int, float]], best_step: int, path: Path, *, title: str) -> None:
    """Write a PNG with the loss of each step's batch, its moving average, and the loss on held-out rows (step, loss)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.8)
    axes.plot(steps, smooth(losses), color="tab:blue", label="training (moving average)")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="held-out rows")
        axes.axvline(best_step, color="tab:gray", linestyle=":", label=f"weights kept: step {best_step}")
    axes.set(xlabel="optimizer step", ylabel="loss, nats a token of the answer", yscale="log", title=title)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=120, format="png", metadata={"Software": None})
    part.replace(path)
