"""What the commands share: two consoles, the bundle they work on, progress, and errors told in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.bundle import BundleError, LoadedBundle, load_bundle
from services.settings import load_settings
from services.target import Device, Target, find_device, find_target

if TYPE_CHECKING:
    from services.lock import Lock

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="The bundle file (default: bundle.yaml of this project).")
]
DeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--device", help="What it will be served on, where that is not this machine (default: EKIBEN_DEVICE, or found)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
SECONDS_A_LINE = 10


def fail(message: str) -> NoReturn:
    """Print an error and end with 1."""
    err.print("error", style="red", end=": ")
    err.print(message, markup=False)
    raise typer.Exit(1)


def agreed(question: str, *, yes: bool) -> bool:
    """Whether to go on: by --yes, or as answered on a terminal. Without a terminal nobody is asked: the command ends with 1."""
    if yes:
        return True
    if not sys.stdin.isatty():
        fail(f"{question} There is no terminal to ask on; give --yes.")
    return typer.confirm(question, err=True)


def load(path: Path | None, device: Device | None = None, *, folders: bool = True) -> LoadedBundle:
    """Return the bundle, checked for what it will be served on, or print every problem and end with 1.

    Without `folders`, adapters and documents are not asked for.
    """
    target = None if device is None else find_target(device)
    try:
        return load_bundle(path or load_settings().bundle, packed=not folders, target=target)
    except BundleError as error:
        for line in error.lines:
            err.print(line, markup=False, style="red")
        err.print(f"{len(error.lines)} problem{'s' if len(error.lines) > 1 else ''}; nothing was started.")
        raise typer.Exit(1) from error


def target_of(device: Device | None) -> Target:
    """Return what a model will be served on: as told, or by EKIBEN_DEVICE, or this machine."""
    return find_target(device or find_device(load_settings()))


@contextmanager
def reported() -> Generator[None]:
    """Turn the errors of the parts into a message and a failing exit; anything else is a defect and keeps its trace."""
    from adapters.checkpoint import CheckpointError
    from adapters.manifest import AdapterError
    from adapters.recipe import TrainingError
    from adapters.rows import RowError
    from guards.onnx_model import OnnxError
    from models.making import ModelError
    from models.source import SourceError
    from rag.index import UnusableIndex
    from rag.judgements import BadJudgements
    from rag.plugins import BadPlugin
    from rag.store import StoreError
    from services.engine_process import EngineFailed
    from services.errors import EkibenError
    from services.journal import ReleaseError
    from services.lock import LockError
    from services.manifest import BentoError
    from services.results import BadResult

    training = (CheckpointError, RowError, TrainingError)
    try:
        yield
    except (
        AdapterError,
        BentoError,
        ModelError,
        SourceError,
        UnusableIndex,
        StoreError,
        BadJudgements,
        BadPlugin,
        BadResult,
        LockError,
        ReleaseError,
        OnnxError,
        EngineFailed,
        EkibenError,
        *training,
    ) as error:
        fail(str(error))


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file; a spreadsheet does not take what is returned for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


class Bar:
    """Progress on a terminal; plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True
        )
        self._task = None
        self._told = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """Begin a step."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)
        if not err.is_terminal:
            err.print(text, markup=False)

    def advance(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def tell(self, text: str, done: float, total: float) -> None:
        """Move the bar and say how the step does; elsewhere a line every ten seconds, and at the end."""
        if self._task is not None:
            self._bar.update(self._task, description=text, completed=done, total=total)
        now = time.monotonic()
        if not err.is_terminal and (done >= total or now - self._told > SECONDS_A_LINE):
            self._told = now
            err.print(text, markup=False)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False)


class Pace:
    """Says of a step how fast it goes and how long it will take."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._step = ""
        self._first = 0
        self._started = 0.0

    def tell(self, step: str, done: int, total: int) -> None:
        """Say how much of a step is done."""
        now = time.monotonic()
        if step != self._step:
            # What was there at the first word of a step says nothing of its rate.
            self._step, self._first, self._started = step, done, now
        rate = (done - self._first) / (now - self._started) if now > self._started else 0.0
        pace = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate and done < total else ""
        self._bar.tell(f"{step}: {done}/{total}{pace}", done, total)


def write_lock(lock: Lock, bundle: Path | None) -> None:
    """Write bundle.lock beside the bundle and say so."""
    path = (bundle or load_settings().bundle).with_suffix(".lock")
    lock.write(path)
    out.print(f"wrote {path.name}", markup=False)
