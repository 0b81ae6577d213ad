"""A snapshot on disk: the images of a warmed engine, what it was made on, and where it may be continued.

A snapshot is a folder `NAME/` with `manifest.json` and CRIU's `images/`. Who can write there can run what he likes as whoever
restores it: the folder belongs to that user alone, and one that others may write to is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import os  # noqa: TID251  the owner of a folder
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT = 1
MANIFEST, IMAGES = "manifest.json", "images"
_PART = ".part-"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SnapshotError(RuntimeError):
    """A snapshot is not there, not whole, or not to be trusted; the message says what to do."""


class Facts(BaseModel):
    """What memory that was dumped depends on: where one of these is another, it is not continued."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(default=FORMAT, description="form of the snapshot")
    box: str = Field(description="the Bento's version: code, bundle and lock")
    cpu: str = Field(description="the processor's model")
    flags: frozenset[str] = Field(description="its instruction sets, as the kernel names them")
    cores: int = Field(description="physical cores that the engine may use")
    kernel: str = Field(description="release of the kernel")
    criu: str
    python: str
    packages: dict[str, str] = Field(description="versions of what is in the memory")
    places: dict[str, str] = Field(description="folders that the memory refers to")

    def differences(self, other: Facts) -> list[str]:
        """Return in words what is another here (`other`) than where the snapshot was made (`self`)."""
        found: list[str] = []
        mine, theirs = self.model_dump(), other.model_dump()
        for name, value in mine.items():
            if value == theirs[name]:
                continue
            if isinstance(value, dict):
                names = sorted({*value, *theirs[name]})
                changed = ((key, value.get(key), theirs[name].get(key)) for key in names)
                found += [f"{key} was {was}, is {now}" for key, was, now in changed if was != now]
            elif isinstance(value, frozenset):
                gone, new = sorted(value - theirs[name]), sorted(theirs[name] - value)
                found += [f"the processor lacks {', '.join(gone)}"] if gone else []
                found += [f"the processor also has {', '.join(new)}"] if new else []
            else:
                found.append(f"{name} was {value}, is {theirs[name]}")
        return found


class File(BaseModel):
    """One file of the images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a snapshot holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    made_at: datetime
    facts: Facts
    process: int = Field(description="number of the engine's process in its namespace")
    descriptors: tuple[str, str, str] = Field(description="CRIU's names of its standard files, which a restore gives anew")
    models: list[str] = Field(description="the names that it answers under")
    start_seconds: float = Field(description="from nothing to a warmed engine, when it was made")
    files: dict[str, File]

    @property
    def bytes(self) -> int:
        """Size of the images."""
        return sum(file.bytes for file in self.files.values())


def read(folder: Path) -> Manifest:
    """Read a snapshot's manifest; raises SnapshotError where it is not there, not ours, or not of this version."""
    private(folder)
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise SnapshotError(f"{folder} is no snapshot: {MANIFEST} cannot be read") from error
    except ValidationError as error:
        raise SnapshotError(f"{folder} is not of this version: remove it and create another") from error


def read_all(root: Path) -> list[Manifest]:
    """Return the manifests of all snapshots under a folder that can be read, newest first."""
    found: list[Manifest] = []
    for folder in sorted(root.glob(f"*/{MANIFEST}")):
        try:
            found.append(read(folder.parent))
        except SnapshotError:
            continue
    return sorted(found, key=lambda manifest: manifest.made_at, reverse=True)


def private(folder: Path) -> None:
    """Raise SnapshotError unless a folder is ours, and nobody else may enter it."""
    try:
        found = folder.lstat()
    except OSError as error:
        raise SnapshotError(f"there is no snapshot {folder.name} in {folder.parent}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise SnapshotError(f"{folder} is not this user's alone (chmod 700, chown): what it holds would run as this user")


def missing(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files of a snapshot by their names and sizes alone."""
    found: list[str] = []
    for name, file in manifest.files.items():
        try:
            size = (folder / IMAGES / name).stat().st_size
        except OSError:
            found.append(f"{name} is missing")
            continue
        if size != file.bytes:
            found.append(f"{name} has {size} bytes, not {file.bytes}")
    return found


def altered(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files of a snapshot by their contents; reads all of it."""
    if found := missing(folder, manifest):
        return found
    return [f"{name} was altered" for name, file in manifest.files.items() if digest(folder / IMAGES / name) != file.sha256]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(images: Path) -> dict[str, File]:
    """Return what a manifest says of the files of a folder."""
    return {path.name: File(bytes=path.stat().st_size, sha256=digest(path)) for path in sorted(images.iterdir())}


@contextmanager
def being_made(root: Path, name: str) -> Generator[Path]:
    """Yield a folder that becomes `root/name` when the block is left without an error, and vanishes otherwise.

    What an earlier run that was killed left behind is removed. Raises SnapshotError where another run makes one now.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SnapshotError(f"another snapshot is being made in {root}; wait for its end") from error
        remove(root.glob(f"{_PART}*"))
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=root))
        try:
            (part / IMAGES).mkdir(mode=0o700)
            yield part
            remove([root / name])
            part.rename(root / name)
        except BaseException:
            remove([part])
            raise


def remove(folders: Iterable[Path]) -> None:
    """Remove folders that are there."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
