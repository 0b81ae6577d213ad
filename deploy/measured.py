"""What was measured of an engine: the file, what saturates an engine, and whether it is still the engine that is deployed.

`ekiben deploy measure` writes the file, `engine.measured` of the environment file names it. Only its two figures count for what
is rendered; the rest is there to be read, and to tell when it no longer fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from pydantic import BaseModel, ConfigDict, Field, JsonValue

GROWTH = 1.05
"""More streams must give this much more throughput to be worth their waiting; repetitions differ by a few percent."""


class Step(BaseModel):
    """What an engine gave under one number of streams. Times are those to the first token, in milliseconds."""

    model_config = ConfigDict(frozen=True)

    streams: int = Field(ge=1)
    tokens_per_second: float = Field(ge=0, description="generated, over all streams together")
    ttft_p50_ms: float = Field(ge=0)
    ttft_p95_ms: float = Field(ge=0)


class Place(BaseModel):
    """Where it was measured."""

    model_config = ConfigDict(frozen=True)

    device: str = Field(description="cpu or cuda")
    cpu: str = Field(default="", description="the processor's name")
    cores: int = Field(ge=1, description="physical cores, or as many as the container's share of processor time is worth")
    vllm: str = ""
    layout: dict[str, JsonValue] = Field(default_factory=dict, description="of a CPU engine's processes and threads")
    others: float = Field(default=0, ge=0, description="share of the processors that other programs used meanwhile")


class Measured(BaseModel):
    """What was measured of an engine. A file of another load test needs the two figures alone; unknown fields are left alone."""

    model_config = ConfigDict(frozen=True)

    cold_start_seconds: float | None = Field(default=None, gt=0)
    saturation: int | None = Field(default=None, ge=1)
    healthy_seconds: float | None = Field(default=None, description="of the cold start, until /health")
    slo_ttft_ms: float | None = None
    prompt_words: int | None = None
    answer_tokens: int | None = None
    steps: tuple[Step, ...] = ()
    bundle: str | None = Field(default=None, description="the Bento's tag")
    engine: dict[str, JsonValue] = Field(default_factory=dict, description="as Box.engine")
    place: Place | None = None


class NeverWithin(ValueError):
    """No number of streams was within the objective; the message says how far it was, and what to change."""


def saturation(steps: Sequence[Step], slo_ttft_ms: float) -> int:
    """Return the number of streams that saturates an engine.

    That is the largest of the measured numbers at which both hold: the 95th percentile of the time to the first token is
    `slo_ttft_ms` or less, and the throughput is at least 5% above the best of all smaller numbers. (Where throughput never falls
    that is the step before; after a dip, getting back to where it was is no growth.) The smallest number of all has nothing to
    grow from, and counts as grown. Where no number within the objective has grown, it is the smallest of these.

    Raises:
        NeverWithin: the objective was missed at every number of streams.
        ValueError: there are no steps.
    """
    if not steps:
        raise ValueError("nothing was measured")
    ordered = sorted(steps, key=lambda step: step.streams)
    best_before = [0.0, *accumulate((step.tokens_per_second for step in ordered), max)]
    within = [(step, best) for step, best in zip(ordered, best_before, strict=False) if step.ttft_p95_ms <= slo_ttft_ms]
    if not within:
        least = min(ordered, key=lambda step: step.ttft_p95_ms)
        raise NeverWithin(
            f"the first token took {least.ttft_p95_ms:.0f} ms at p95 with {_streams(least.streams)}, and {slo_ttft_ms:g} ms are "
            "wanted: raise --slo-ttft-ms, or take shorter prompts, a smaller model or recipe, or a faster machine"
        )
    grown = [step.streams for step, best in within if step.tokens_per_second >= best * GROWTH]
    return grown[-1] if grown else within[0][0].streams


def outdated(measured: Measured, engine: dict[str, JsonValue], *, device: str, cpu: float | None = None) -> list[str]:
    """Return how the engine that is deployed differs from the one measured, each in words; nothing of what the file leaves out.

    `engine` is as Box.engine, `device` is cpu or cuda, `cpu` are the processors that a CPU engine is given.
    """
    told: list[str] = []
    if measured.engine:
        names = sorted({*measured.engine, *engine})
        pairs = ((name, measured.engine.get(name), engine.get(name)) for name in names)
        told += [f"{name} {_value(was)}, now {_value(now)}" for name, was, now in pairs if was != now]
    if (place := measured.place) is not None:
        if place.device != device:
            told.append(f"on {place.device}, now on {device}")
        elif device == "cpu" and cpu is not None and place.cores != cpu:
            told.append(f"on {place.cores} cores, now engine.resources.cpu {cpu:g}")
    return told


def _streams(number: int) -> str:
    return f"{number} stream{'s' if number > 1 else ''}"


def _value(value: JsonValue) -> str:
    return "unset" if value is None else str(value)
