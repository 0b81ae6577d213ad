"""How vLLM's processes and threads lie on a machine's processors, and what is safe where nothing was measured.

On a CPU vLLM is an API server, an engine core and a worker. Stock vLLM gives each a process and keeps a core free of the worker's
threads; the core waits for its worker by spinning. Here core and worker may share a process, and the threads may take every core.
"""

from __future__ import annotations

import os  # noqa: TID251  only to count processors
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

# Up to here one core is a large share of the machine, and vLLM's habit of keeping one back costs more than anything it brings.
_SMALL = 8
# Up to here the worker's threads take every core, the API server's too: it is busy for a tenth of the time.
_ALL_CORES = 4


class Layout(BaseModel):
    """The engine's processes and threads on a CPU, and whether the model is compiled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: Literal["joined", "apart"] = Field(description="engine core and worker in one process, or in two as in stock vLLM")
    threads: int | None = Field(default=None, ge=1, description="the worker's threads, where they are not bound to processors")
    cpus: str | None = Field(
        default=None, pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$", description="processors that threads are bound to"
    )
    compiled: bool = Field(default=False, description="torch.compile: runs faster, starts later, needs a C++ compiler")

    @property
    def arguments(self) -> list[str]:
        """The arguments that vLLM takes for it, without those of compiling."""
        return ["--distributed-executor-backend", "uni"] if self.processes == "joined" else []

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that vLLM takes for it."""
        variables = {"VLLM_CPU_OMP_THREADS_BIND": self.cpus or ("auto" if self.threads is None else "nobind")}
        if self.threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        if self.processes == "joined":
            variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return variables


@dataclass(frozen=True)
class Machine:
    """What a layout depends on: the processors this process may use, and what they are."""

    cpu: str
    """The processor's model name."""
    cores: int
    """Physical cores that may be used; a container's share of processor time counts as so many cores."""
    processors: int
    """The same in logical processors: twice as many where each core runs two threads."""
    node_cores: int
    """Of these, the cores on the memory node that has most of them."""
    limited: bool
    """A share of processor time is what bounds `cores`: a thread that spins uses it up."""
    memory_gib: int
    """The machine's memory, rounded up to a power of two."""


def default_layout(machine: Machine) -> Layout:
    """Return a layout that is safe without measuring: never compiled, because that delays the first start by a minute.

    Small machines: one process, and threads on all cores (on all but one beyond four). Larger ones: as stock vLLM, which binds
    each thread to a core of one memory node and keeps one core back; there that core is a small share, and binding pays. A
    container's share of processor time cannot be bound to cores, and stock vLLM's spinning would use it up: one process again.
    """
    if machine.limited or machine.cores <= _SMALL:
        threads = min(machine.cores, machine.node_cores)
        return Layout(processes="joined", threads=threads if threads <= _ALL_CORES else threads - 1)
    return Layout(processes="apart")


def this_machine(cgroups: Path = Path("/sys/fs/cgroup"), system: Path = Path("/sys/devices/system")) -> Machine:
    """Return the machine this process runs on, as its affinity and its container let it see it."""
    core_of = {cpu: _read(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in os.sched_getaffinity(0)}
    physical, share = len({*core_of.values()}), processor_share(cgroups)
    cores = physical if share is None else min(physical, max(int(share), 1))
    nodes = [_processors(_read(node / "cpulist") or "") for node in (system / "node").glob("node[0-9]*")]
    by_node = [len({core_of[cpu] for cpu in node if cpu in core_of}) for node in nodes]
    limited = cores < physical
    return Machine(
        cpu=cpu_name(), cores=cores, processors=cores if limited else len(core_of),
        node_cores=min(cores, max(by_node, default=cores) or cores), limited=limited,
        memory_gib=1 << max(round(psutil.virtual_memory().total / 2**30) - 1, 0).bit_length(),
    )  # fmt: skip


def processor_share(cgroups: Path) -> float | None:
    """Return the processors' worth of time that a container may use, or None where there is no limit."""
    if quota := _read(cgroups / "cpu.max"):
        most, period = quota.split()
        return None if most == "max" else int(most) / int(period)
    most, period = (_read(cgroups / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return int(most) / int(period) if most and period and int(most) > 0 else None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name with its family, model and stepping: clouds call several generations by one name."""
    fields: dict[str, str] = {}
    for line in (_read(cpuinfo) or "").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    numbers = [fields[name] for name in ("cpu family", "model", "stepping") if name in fields]
    matrix = ["amx"] if "amx_tile" in fields.get("flags", "").split() else []
    return " ".join([fields.get("model name") or os.uname().machine, "/".join(numbers), *matrix]).strip()


def compiler_missing() -> str | None:
    """Return what torch.compile lacks on this machine, with the remedy, or None."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        return "torch.compile needs a C++ compiler, which is not on this machine: apt-get install g++"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch.compile needs Python's header files, which are not on this machine: apt-get install python3-dev"
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _processors(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
