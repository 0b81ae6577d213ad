"""How soon a bundle's engine answers after its start, and how many requests at once saturate it, measured on this machine.

The engine runs as a cluster runs it: `ekiben engine serve`, alone. Load is what `services.measure` sends: every stream of a burst
begins at once, as when requests have waited for an engine that slept. `ekiben deploy measure` is this.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.measured import Measured, Place, Step, saturation
from services.bento import version_here
from services.bundle import load_bundle
from services.deploying import engine_facts
from services.engine import find_device
from services.engine_process import RunningEngine, free_port, server_process
from services.launch import engine_launch
from services.layout import this_machine
from services.lock import Lock
from services.measure import measure
from services.settings import ROOT, Settings
from services.tuning import Others, layout_here, tuning_key

ROUNDS = 3
"""Bursts of each number of streams."""
_WARM_TOKENS = 8


class Progress(Protocol):
    """Hears what is done, and what came of it."""

    def step(self, text: str) -> None:
        """Hear what begins."""
        ...

    def note(self, text: str) -> None:
        """Hear what came of it."""
        ...


@dataclass(frozen=True)
class Load:
    """What each stream asks for, and the objective: the time to the first token at the 95th percentile, in milliseconds."""

    prompt_words: int
    tokens: int
    slo_ttft_ms: float


def stream_counts(most: int) -> list[int]:
    """Return 1, 2, 4, 8, ... up to `most`, which is always the last."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


async def capacity(settings: Settings, lock: Lock, load: Load, progress: Progress) -> Measured:
    """Start the engine of the settings' bundle, time it, load it and end it.

    Raises:
        NeverWithin: the objective was missed at every number of streams.
        EngineFailed: the engine did not start.
        BundleError, LockError, UnusableEngine: as `engine_launch`.
        EngineRefused, EngineUnavailable: as `measure`.
    """
    engine_launch(settings, lock)  # what is wrong is told here in a line, not at the end of an engine's log
    bundle, device, machine = load_bundle(settings.bundle, packed=True).bundle, find_device(settings), this_machine()
    lora, port = bool(lock.adapters), free_port()
    progress.step("starting the engine")
    async with server_process(engine_command(settings, port), port=port) as engine:
        first = await measure(engine.url, bundle.model.name, 1, _WARM_TOKENS, prompt_words=load.prompt_words, seed=0)
        cold = engine.start_seconds + first.ttft_seconds[0]
        progress.note(f"  healthy after {engine.start_seconds:.1f} s, first token after {cold:.1f} s")
        others = Others()
        models = [bundle.model.name, *sorted(await engine.client.adapters())]
        steps = await loaded(engine, models, stream_counts(bundle.engine.max_num_seqs), load, progress)
        disturbed = others.share()
    key = tuning_key(bundle, lock.model, machine, lora=lora)
    layout = layout_here(bundle, lock.model, machine, settings.cache_dir, lora=lora).model_dump(mode="json", exclude_none=True)
    return Measured(
        cold_start_seconds=round(cold, 2), healthy_seconds=round(engine.start_seconds, 2),
        saturation=saturation(steps, load.slo_ttft_ms), slo_ttft_ms=load.slo_ttft_ms,
        prompt_words=load.prompt_words, answer_tokens=load.tokens, steps=tuple(steps),
        bundle=f"{bundle.name}:{version_here()}", engine=engine_facts(bundle, lock),
        place=Place(
            device=device, cpu=machine.cpu, cores=machine.cores, vllm=key.vllm, layout=layout if device == "cpu" else {},
            others=round(disturbed, 3),
        ),
    )  # fmt: skip


async def loaded(engine: RunningEngine, models: list[str], counts: list[int], load: Load, progress: Progress) -> list[Step]:
    """Load an engine with each number of streams in turn, and return what each gave; no prompt is sent twice.

    Throughput is the median of ROUNDS bursts, percentiles are over the streams of them all. Once half of the first tokens came
    later than the objective has it, larger numbers are left out: they take the longest, and come later still.
    """
    steps: list[Step] = []
    for number, streams in enumerate(counts, 1):
        some = f"{streams} stream{'s' if streams > 1 else ''}"
        progress.step(f"{some} of {load.tokens} tokens")
        # The first burst of a size is slower than all that follow.
        await measure(engine.url, models, streams, _WARM_TOKENS, prompt_words=load.prompt_words, seed=number * 100)
        bursts = [
            await measure(engine.url, models, streams, load.tokens, prompt_words=load.prompt_words, seed=number * 100 + turn)
            for turn in range(1, ROUNDS + 1)
        ]
        p50, p95 = np.percentile([wait * 1000 for burst in bursts for wait in burst.ttft_seconds], (50, 95))
        rate = statistics.median(burst.tokens_per_second for burst in bursts)
        step = Step(
            streams=streams, tokens_per_second=round(rate, 1), ttft_p50_ms=round(float(p50), 1), ttft_p95_ms=round(float(p95), 1)
        )
        steps.append(step)
        progress.note(f"  {some}: {rate:.0f} tokens/s, first token {p50:.0f} / {p95:.0f} ms")
        if step.ttft_p50_ms > load.slo_ttft_ms:
            break
    return steps


def engine_command(settings: Settings, port: int) -> list[str]:
    """Return the command line of `ekiben engine serve` on a loopback port, as a child that dies with this process."""
    told = {
        "EKIBEN_BUNDLE": settings.bundle.resolve(), "EKIBEN_CACHE_DIR": settings.cache_dir.resolve(),
        "EKIBEN_ENGINE_HOST": "127.0.0.1", "EKIBEN_ENGINE_PORT": port,
    }  # fmt: skip
    others = ("EKIBEN_ENGINE_KEY", "EKIBEN_ENGINE_URL", "EKIBEN_ENGINE_SLEEPS", "VLLM_API_KEY")
    unset = [part for name in others for part in ("-u", name)]
    python = [sys.executable, "-m"]
    return [
        "env", "-C", str(ROOT), *unset, *(f"{name}={value}" for name, value in told.items()),
        *python, "services.child", *python, "services.cli", "engine", "serve",
    ]  # fmt: skip
