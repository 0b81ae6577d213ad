"""The `criu` command: what of it is used, and its errors in one line.

The image of a process tree that CRIU makes holds its memory; a restore continues it. Root, or CAP_SYS_ADMIN with
CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE, is needed for both. Versions before 4.2 cannot dump on current kernels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PLACES = (Path("/opt/criu/criu"),)
"""Where `make criu` puts it, beside the PATH."""
# Control groups stay the caller's: a container, or a unit of systemd, goes on to bound what is restored in it.
_OPTIONS = ("--file-locks", "--manage-cgroups=ignore", "-v1")
_ERROR = re.compile(r"Error \([^)]*\): (.*)")
# Said also when all goes well, where the limit of open files may not be raised.
_HARMLESS = re.compile(r"RLIMIT_NOFILE|kdat cache")
_HEAD = 3


class CriuFailed(RuntimeError):
    """There is no criu here, or it could not do what was asked; the message says what it said first."""


@dataclass(frozen=True)
class Criu:
    """One installation of criu."""

    program: Path
    seconds: float = 120.0
    """What a dump or a restore may take: a restore of files that were cut off does not end by itself."""

    @cached_property
    def version(self) -> str:
        """Its version, such as `4.2.1`; raises CriuFailed."""
        done = self._run("--version")
        found = re.search(r"Version: (\S+)", done.stdout)
        if found is None:
            raise CriuFailed(f"{self.program} --version says nothing of a version: {_first(done.stdout + done.stderr)}")
        return found[1]

    def check(self) -> None:
        """Ask whether this kernel and these rights are enough; raises CriuFailed."""
        done = self._run("check")
        if done.returncode != 0:
            raise CriuFailed(f"criu check: {_first(done.stderr + done.stdout)}")

    def dump(self, process: int, images: Path) -> None:
        """Write the tree of a process into a folder, and end it; raises CriuFailed, and the tree goes on then."""
        self._do("dump", images, images, "--tree", str(process))

    def restore(self, images: Path, work: Path, inherited: Mapping[str, int]) -> None:
        """Continue what `dump` wrote, as a child of process 1; `work` is a folder for logs.

        `inherited` gives open files of ours by the names that theirs had. Raises CriuFailed.
        """
        given = [word for name, fd in inherited.items() for word in ("--inherit-fd", f"fd[{fd}]:{name}")]
        self._do("restore", images, work, "--restore-detached", *given, descriptors=tuple(inherited.values()))

    def _do(self, verb: str, images: Path, work: Path, *options: str, descriptors: tuple[int, ...] = ()) -> None:
        log = work / f"{verb}.log"
        words = [verb, "--images-dir", str(images), "--work-dir", str(work), "--log-file", log.name, *_OPTIONS, *options]
        done = self._run(*words, descriptors=descriptors)
        if done.returncode != 0:
            told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else done.stderr
            raise CriuFailed(f"criu {verb}: {_first(told)}")

    def _run(self, *words: str, descriptors: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603  no shell
                [self.program, *words], capture_output=True, text=True, errors="replace", check=False,
                stdin=subprocess.DEVNULL, pass_fds=descriptors, timeout=self.seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CriuFailed(f"criu {words[0]} took longer than {self.seconds:.0f} s") from error
        except OSError as error:
            raise CriuFailed(f"{self.program} cannot be run: {error.strerror or error}") from error


def find_criu(named: Path | None = None, places: tuple[Path, ...] = PLACES) -> Criu:
    """Return the criu of this machine: as named, or that on the PATH, or that in its usual place. Raises CriuFailed."""
    if named is not None:
        if not named.is_file():
            raise CriuFailed(f"EKIBEN_CRIU names {named}, which is not there")
        return Criu(named)
    found = [Path(on_path)] if (on_path := shutil.which("criu")) else [place for place in places if place.is_file()]
    if not found:
        raise CriuFailed("criu is not on this machine: `make criu` puts it into /opt/criu on Debian; or set EKIBEN_CRIU")
    return Criu(found[0])


def _first(said: str) -> str:
    """Return the first errors of a log, which are the causes; later ones follow from them."""
    errors = [line for line in _ERROR.findall(said) if not _HARMLESS.search(line)]
    lines = errors or [line for line in said.splitlines() if line.strip()]
    return "; ".join(lines[:_HEAD]) or "it said nothing"
