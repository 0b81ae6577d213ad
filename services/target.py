"""What an engine will run on: this machine, or another that the settings or the command line name."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from services.settings import Settings

Device = Literal["cpu", "cuda"]
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Target:
    """A device, and for a CPU its architecture as Linux names it and the flags of its instruction sets."""

    device: Device
    architecture: str = "x86_64"
    flags: frozenset[str] = frozenset()


def find_device(settings: Settings) -> Device:
    """Return `cpu` or `cuda`: as told, or by whether a GPU's driver answers on this machine."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if shutil.which("nvidia-smi") and Path("/dev/nvidia0").exists() else "cpu"


def find_target(device: Device, cpuinfo: Path = Path("/proc/cpuinfo")) -> Target:
    """Return this machine as a target; a `cuda` target need not be this machine."""
    if device == "cuda":
        return Target("cuda")
    machine = platform.machine().lower()
    return Target("cpu", _ARCHITECTURES.get(machine, machine), _cpu_flags(cpuinfo))


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the flags of the first processor; x86 calls them flags, Arm Features."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()
