"""The engine: stock vLLM as the child of a BentoML command service, on the loopback interface.

On a CPU it runs as one process whose threads take all cores: stock vLLM keeps one core for its API server, and so computes
on half of a two-core machine. On a GPU vLLM's own layout is kept.
"""

from __future__ import annotations

import ctypes.util
import os  # noqa: TID251  only to count processors
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.target import find_device as find_device  # noqa: PLC0414  what starts engines has it from here

if TYPE_CHECKING:
    from services.bundle import Bundle, Engine

GIB = 2**30
# Arguments that are decided here for a CPU, and otherwise vLLM's business.
_DERIVED = frozenset({"enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes"})
_LORA = frozenset({"max_loras", "max_cpu_loras", "max_lora_rank"})


def vllm_arguments(
    bundle: Bundle, *, model: Path, adapters: dict[str, Path], device: str, port: int, free_bytes: int
) -> list[str]:
    """Return vLLM's arguments for this bundle on this machine; `free_bytes` is the memory that nobody uses now."""
    engine = bundle.engine
    arguments = ["--model", str(model), "--served-model-name", bundle.model.name, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--disable-uvicorn-access-log", *_own_arguments(engine, lora=bool(adapters))]
    if adapters:
        arguments += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in sorted(adapters.items()))]
    if device == "cuda":
        if engine.gpu_memory_utilization is not None:
            arguments += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
        if engine.enforce_eager:
            arguments.append("--enforce-eager")
        return arguments
    arguments += ["--distributed-executor-backend", "uni", "--kv-cache-memory-bytes", str(kv_cache_bytes(engine, free_bytes))]
    if adapters or engine.enforce_eager is not False:  # vLLM compiles nothing on a CPU once LoRA is on
        arguments.append("--enforce-eager")
    if adapters:
        arguments += ["--worker-extension-cls", "adapters.cpu_lora.GroupedLora"]
    return arguments


def vllm_environment(device: str, cores: int) -> dict[str, str]:
    """Return the environment variables that lay out vLLM's processes and threads."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cuda":
        return quiet
    return {
        **quiet,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(cores),
        "VLLM_TARGET_DEVICE": "cpu",
    }


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
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    return ["env", "-u", "PROMETHEUS_MULTIPROC_DIR", *variables, sys.executable, "-m", "services.child", *server]


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
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0))


def _own_arguments(engine: Engine, *, lora: bool) -> list[str]:
    arguments: list[str] = []
    left_out = _DERIVED if lora else _DERIVED | _LORA
    for name, value in engine.model_dump(exclude_none=True, exclude=set(left_out)).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments
