"""A base model made by one recipe, measured as vLLM serves it: files, memory, speed, likelihood, and an adapter's accuracy.

The likelihood comes from the engine's `prompt_logprobs`, because it is the served kernels that count: transformers computes a
quantized model by other ones.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from pathlib import Path

from adapters.evaluate import adapter_accuracy
from adapters.manifest import Manifest, read_manifest
from adapters.rows import Row
from models.making import TEXTS
from services.bundle import LoadedBundle
from services.engine import GIB, free_memory_bytes, usable_cores, vllm_arguments, vllm_environment
from services.engine_client import EngineClient
from services.engine_process import RunningEngine, engine_process, free_port
from services.measure import Measured, measure
from services.packing import Progress
from services.target import Device

KV_CACHE_BYTES = GIB
STREAMS = (1, 64)
TOKENS = 64
ROUNDS = 3


class NotComparable(ValueError):
    """What was asked for cannot be measured with this bundle; the message says why."""


@dataclass(frozen=True)
class AdapterTask:
    """Rows of {"text", "label"}, and the adapter that is asked, as it was trained to be."""

    name: str
    folder: Path
    rows: list[Row]
    manifest: Manifest


@dataclass(frozen=True)
class Speed:
    """What `STREAMS` streams of `TOKENS` tokens gave: the medians of `ROUNDS` rounds."""

    tokens_per_second: float
    ttft_p50_seconds: float


@dataclass(frozen=True)
class Figures:
    """One recipe's figures."""

    recipe: str
    tag: str
    file_bytes: int
    memory_bytes: int
    """What the engine's processes hold together after the load, `KV_CACHE_BYTES` of KV cache included."""
    start_seconds: float
    speed: dict[int, Speed]
    """By number of streams."""
    nll: float
    """Mean negative log-likelihood of models/quality.txt, nats a token."""
    accuracy: float | None


def adapter_task(loaded: LoadedBundle, name: str, rows: list[Row]) -> AdapterTask:
    """Return what to ask an adapter of the bundle; raises NotComparable and AdapterError."""
    bundle = loaded.bundle
    if name not in bundle.adapters:
        raise NotComparable(f"no adapter named {name!r} in the bundle; there is: {', '.join(bundle.adapters) or 'none'}")
    folder = loaded.root / bundle.adapters[name].path
    return AdapterTask(name, folder, rows, read_manifest(folder))


async def figures(
    loaded: LoadedBundle, tag: str, folder: Path, *, device: Device, task: AdapterTask | None, progress: Progress
) -> Figures:
    """Start an engine on the model in `folder` and measure it; raises EngineFailed, or what the engine refuses.

    With a task the engine serves LoRA, and so does what is measured of its speed.
    """
    recipe = loaded.bundle.model.quantization.recipe
    bundle = loaded.bundle.model_copy(
        update={"engine": loaded.bundle.engine.model_copy(update={"kv_cache_memory_bytes": KV_CACHE_BYTES})}
    )
    port, adapters = free_port(), {} if task is None else {task.name: task.folder}
    arguments = vllm_arguments(bundle, model=folder, adapters=adapters, device=device, port=port, free_bytes=free_memory_bytes())
    file_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # noqa: ASYNC240  a handful of files
    progress.step(f"{recipe}: starting the engine")
    async with engine_process(arguments, vllm_environment(device, usable_cores()), port=port) as engine:
        progress.step(f"{recipe}: likelihood")
        texts = [text.strip() for text in TEXTS.read_text(encoding="utf-8").split("\n\n") if text.strip()]
        nll = await served_nll(engine.client, bundle.model.name, texts)
        speed = {streams: await _speed(engine, bundle.model.name, recipe, streams, progress) for streams in STREAMS}
        memory = await asyncio.to_thread(engine.memory_bytes)
        right = None
        if task is not None:
            total = len(task.rows)
            progress.step(f"{recipe}: {task.name} on {total} rows")
            right = await adapter_accuracy(
                engine.client, task.name, manifest=task.manifest, rows=task.rows, advance=lambda n: progress.advance(n, total)
            )
    return Figures(
        recipe=recipe, tag=tag, file_bytes=file_bytes,
        memory_bytes=memory, start_seconds=engine.start_seconds, speed=speed, nll=nll, accuracy=right,
    )  # fmt: skip


async def served_nll(client: EngineClient, model: str, texts: list[str]) -> float:
    """Return the mean negative log-likelihood of the texts, in nats a token, as the engine computes it."""
    total, count = 0.0, 0
    for text in texts:
        payload = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await client.complete("/v1/completions", payload)
        # The first token has no likelihood; of each other one the engine tells that of the token that stands there.
        for position in answer["choices"][0]["prompt_logprobs"][1:]:
            [entry] = position.values()
            total, count = total - entry["logprob"], count + 1
    return total / count


async def _speed(engine: RunningEngine, model: str, recipe: str, streams: int, progress: Progress) -> Speed:
    progress.step(f"{recipe}: {streams} stream{'s' if streams > 1 else ''} of {TOKENS} tokens")
    await measure(engine.url, model, streams, 8)  # the first burst of a size is slower than all that follow
    rounds: list[Measured] = []
    for number in range(1, ROUNDS + 1):
        rounds.append(await measure(engine.url, model, streams, TOKENS, seed=number))
        progress.advance(number, ROUNDS)
    return Speed(
        statistics.median(measured.tokens_per_second for measured in rounds),
        statistics.median(measured.ttft_p50_seconds for measured in rounds),
    )
