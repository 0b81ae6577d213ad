"""Whether a Bento is what its manifest says: every file, and every model, adapter and index that it names."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.digests import file_digests, rows_digest, stored_files
from services.lock import LockError
from services.manifest import BentoError, Manifest, Stored, bento_files, read_manifest
from services.store import bento_path, stored_path

if TYPE_CHECKING:
    from services.packing import Progress


@dataclass(frozen=True)
class Place:
    """A Bento: its folder, with its models in it where it was exported, and otherwise in this machine's store."""

    folder: Path

    def stored(self, tag: str) -> Path | None:
        """Return the folder of what has a tag, None where it is missing."""
        name, _, version = tag.partition(":")
        if (models := self.folder / "models").is_dir():
            folder = models / name / version
            return folder if folder.is_dir() else None
        try:
            return stored_path(tag)
        except LockError:
            return None


@contextmanager
def opened(what: str) -> Generator[Place]:
    """Find a Bento by its tag, its folder, or an exported file, which is unpacked for as long; raises BentoError."""
    path = Path(what)
    if path.is_dir():
        yield Place(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="ekiben-bento-") as scratch:
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(scratch, filter="data")
            except (tarfile.TarError, OSError, EOFError) as error:
                raise BentoError(f"{path} cannot be unpacked: {error}; export it again") from error
            yield Place(Path(scratch))
    elif path.suffix == ".bento" or len(path.parts) > 1:
        raise BentoError(f"{path} does not exist; name a tag, a Bento's folder or an exported file")
    else:
        yield Place(bento_path(what))


def verify(place: Place, progress: Progress) -> list[str]:
    """Return what is not as the manifest says, a line each; raises BentoError where there is no manifest. All is read anew."""
    manifest = read_manifest(place.folder)
    progress.step(f"{manifest.tag}: files")
    links = [path for path in bento_files(place.folder) if path.is_symlink()]
    found = file_digests(place.folder, (path for path in bento_files(place.folder) if not path.is_symlink()), progress.advance)
    problems = [f"{path.relative_to(place.folder).as_posix()} is a link" for path in links]
    problems += _compared(manifest.files, found)
    for what, stored in manifest.stored().items():
        progress.step(f"{what}: {stored.tag}")
        problems += [f"{what} {stored.tag}: {line}" for line in _stored(place, stored, progress)]
    return problems + _told(manifest, place.folder)


def _stored(place: Place, stored: Stored, progress: Progress) -> list[str]:
    folder = place.stored(stored.tag)
    if folder is None:
        return ["is missing; run `ekiben pack`, or import the exported Bento"]
    problems = _compared(stored.files, file_digests(folder, stored_files(folder), progress.advance))
    if stored.rows is None:
        return problems
    try:
        rows = rows_digest(folder)
    except Exception as error:  # noqa: BLE001  LanceDB's errors over a broken file are of many kinds
        return [*problems, f"its chunks cannot be read: {str(error).splitlines()[0]}"]
    return problems if rows == stored.rows else [*problems, "its chunks were changed"]


def _compared(told: dict[str, str], found: dict[str, str]) -> list[str]:
    lines = [f"{path} is missing" for path in told if path not in found]
    lines += [f"{path} was changed" for path, digest in told.items() if path in found and found[path] != digest]
    return sorted([*lines, *(f"{path} was added" for path in found if path not in told)])


def _told(manifest: Manifest, folder: Path) -> list[str]:
    """Return where the manifest and BentoML's own card disagree."""
    import yaml

    path = folder / "bento.yaml"
    if not path.is_file():
        return []
    info = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    tags = {model["tag"] for service in info["services"] for model in service["models"]}
    listed = {stored.tag for stored in manifest.stored().values()}
    lines = [f"bento.yaml names {tag}, which the manifest does not" for tag in sorted(tags - listed)]
    told = f"{info['name']}:{info['version']}"
    return lines if told == manifest.tag else [*lines, f"bento.yaml says {told}, the manifest {manifest.tag}"]
