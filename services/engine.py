"""The engine: stock vLLM, as the child of a BentoML command service on the loopback interface, or alone (`ekiben engine serve`).

On a CPU its processes and threads lie as `services.layout` has it. On a GPU vLLM's own layout is kept.
"""

from __future__ import annotations

import ctypes.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.layout import Layout, compiler_missing, this_machine
from services.target import find_device as find_device  # noqa: PLC0414  what starts engines has it from here

if TYPE_CHECKING:
    from services.bundle import Bundle, Engine

GIB = 2**30
# Arguments that are decided here for a CPU, and otherwise vLLM's business.
_DERIVED = frozenset({"enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes"})
_LORA = frozenset({"max_loras", "max_cpu_loras", "max_lora_rank"})
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


class UnusableEngine(ValueError):
    """The bundle asks its engine for what vLLM cannot do here; the message says what to change."""


def vllm_arguments(  # noqa: PLR0913  keywords, each another fact
    bundle: Bundle,
    *,
    model: Path,
    adapters: dict[str, Path],
    device: str,
    port: int,
    free_bytes: int,
    host: str = "127.0.0.1",
    layout: Layout | None = None,
    draft: Path | None = None,
) -> list[str]:
    """Return vLLM's arguments for this bundle on this machine; `free_bytes` is the memory that nobody uses now.

    `layout` is a CPU engine's; unless told, core and worker share a process and nothing is compiled. `draft` is where the model
    that guesses tokens is; without it such a bundle's engine guesses none, and answers the same. Raises UnusableEngine.
    """
    engine, lora = bundle.engine, bool(adapters)
    check_engine(engine, device=device)
    arguments = ["--model", str(model), "--served-model-name", bundle.model.name, "--host", host, "--port", str(port)]
    arguments += ["--disable-uvicorn-access-log", *_own_arguments(engine, lora=lora, draft=draft)]
    if adapters:
        arguments += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in sorted(adapters.items()))]
    if device == "cuda":
        if engine.gpu_memory_utilization is not None:
            arguments += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
        if engine.enforce_eager:
            arguments.append("--enforce-eager")
        return arguments
    layout = layout or Layout(processes="joined")
    arguments += [*layout.arguments, "--kv-cache-memory-bytes", str(kv_cache_bytes(engine, free_bytes))]
    if not compiles(engine, layout, lora=lora):
        arguments.append("--enforce-eager")
    return [*arguments, "--worker-extension-cls", "services.cpu_worker.CpuWorker"]


def vllm_environment(device: str, cores: int, layout: Layout | None = None) -> dict[str, str]:
    """Return the environment variables that lay out vLLM's processes and threads; without a layout, one process on `cores`."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    quiet["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"  # on loopback or behind a key; the admin API is the way there
    if device == "cuda":
        return quiet
    layout = layout or Layout(processes="joined", threads=cores)
    if compiler_missing():
        quiet["TORCH_COMPILE_DISABLE"] = "1"  # vLLM compiles the counting of logprobs when it is first asked for, and dies of it
    return {**quiet, **layout.environment, "VLLM_TARGET_DEVICE": "cpu"}


def compiles(engine: Engine, layout: Layout, *, lora: bool) -> bool:
    """Whether a CPU engine compiles its model: not with LoRA (decision 4), else as the bundle says, else as the layout has it."""
    if lora:
        return False
    return layout.compiled if engine.enforce_eager is None else not engine.enforce_eager


def check_engine(engine: Engine, *, device: str) -> None:
    """Raise UnusableEngine for what vLLM would refuse on this device after half a minute, or in other words."""
    if device == "cuda":
        return
    for name in _PARALLEL:
        if (asked := getattr(engine, name)) > 1:
            raise UnusableEngine(f"engine.{name}: {asked} is for GPUs; on a CPU there is one worker: leave it out")
    if engine.enforce_eager is False and (missing := compiler_missing()):
        raise UnusableEngine(f"engine.enforce_eager is false, but {missing}; or leave enforce_eager out")


def kv_cache_bytes(engine: Engine, free_bytes: int) -> int:
    """Return the size of a CPU engine's KV cache: as told, or a third of the free memory, between 0.5 and 16 GiB."""
    if engine.kv_cache_memory_bytes is not None:
        return engine.kv_cache_memory_bytes
    return min(max(free_bytes // 3, GIB // 2), 16 * GIB)


def command(arguments: list[str], environment: dict[str, str]) -> list[str]:
    """Return the command line of the child.

    vLLM would take BentoML's folder for the metrics of several processes for its own, and both would report each other's.
    """
    variables = [f"{name}={value}" for name, value in environment.items()]
    return ["env", "-u", "PROMETHEUS_MULTIPROC_DIR", *variables, sys.executable, "-m", "services.child", *server(arguments)]


def server(arguments: list[str]) -> list[str]:
    """Return vLLM's own command line."""
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]


def free_memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that a new process may take: what the machine has free, within the container's limit."""
    free = psutil.virtual_memory().available
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, now = (int((cgroups / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # another version of cgroups, or no limit ("max")
            continue
        free = min(free, max(most - now, 0))
    return free


def missing_libraries(device: str) -> str | None:
    """Return what to install before vLLM can start, or None."""
    if device == "cpu" and sys.platform == "linux" and ctypes.util.find_library("numa") is None:
        return "vLLM on a CPU needs libnuma, which is not on this machine: apt-get install libnuma1 (or numactl-libs)"
    return None


def usable_cores() -> int:
    """Return the number of physical cores this process may use, within its container's share."""
    return this_machine().cores


def _own_arguments(engine: Engine, *, lora: bool, draft: Path | None) -> list[str]:
    arguments: list[str] = []
    left_out = _DERIVED if lora else _DERIVED | _LORA
    options = engine.model_dump(exclude_none=True, exclude=set(left_out))
    if engine.draft:
        guessing = options.pop("speculative_config")
        options |= {"speculative_config": {**guessing, "model": str(draft)}} if draft else {}
    for name, value in options.items():
        flag = name.replace("_", "-")
        if name in _PARALLEL and value == 1:
            continue
        if isinstance(value, dict):
            arguments += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments
