"""Whether a Bento is what its manifest says: every file, and every model, adapter and index that it names."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.unpacking import unpack
from services.digests import CARD, ROWS, file_digests, rows_digest, stored_files
from services.lock import LockError
from services.manifest import CARRIED, BentoError, Manifest, Stored, bento_files, read_manifest
from services.store import bento_path, stored_path

if TYPE_CHECKING:
    from services.packing import Progress

_BYTECODE = "__pycache__"
_TABLE = re.compile(
    r"chunks\.lance/(?:_transactions/[\w.-]+\.txn|data/\w+\.lance|_versions/(?:\d+\.manifest|latest_version_hint\.json)"
    r"|_deletions/[\w-]+\.(?:arrow|bin)|_indices/[\w-]+/\w+\.(?:idx|lance))"
)
"""Files of LanceDB's table."""
_EMPTY: dict[str, Any] = {"module": "", "options": {}, "signatures": {}, "labels": {"made-by": "ekiben"}, "api_version": "v1"}
_CONTEXT = {"framework_name", "framework_versions", "bentoml_version", "python_version"}


@dataclass(frozen=True)
class Place:
    """A Bento: its folder, with its models in it where it was exported, and otherwise in this machine's store."""

    folder: Path

    @property
    def carried(self) -> Path | None:
        """The folder of models that travel in it."""
        folder = self.folder / CARRIED
        return folder if folder.is_dir() else None

    def stored(self, tag: str) -> Path | None:
        """Return the folder of what has a tag, None where it is missing."""
        if self.carried:
            folder = self.carried / tag.replace(":", "/", 1)
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
                    unpack(archive, Path(scratch))
            except (tarfile.TarError, OSError, EOFError) as error:
                told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
                raise BentoError(f"{path} cannot be unpacked: {told}; export it again") from error
            yield Place(Path(scratch))
    elif path.suffix == ".bento" or len(path.parts) > 1:
        raise BentoError(f"{path} does not exist; name a tag, a Bento's folder or an exported file")
    else:
        yield Place(bento_path(what))


def verify(place: Place, progress: Progress) -> list[str]:
    """Return what is not as the manifest says, a line each; raises BentoError where there is no manifest. All is read anew."""
    manifest = read_manifest(place.folder)
    progress.step(f"{manifest.tag}: files")
    problems = file_problems(manifest, place.folder, progress.advance)
    for what, stored in manifest.stored().items():
        progress.step(f"{what}: {stored.tag}")
        folder = place.stored(stored.tag)
        lines = ["is missing; run `ekiben pack`, or import the exported Bento"]
        if folder is not None:
            lines = stored_problems(stored, folder, progress.advance)
        problems += [f"{what} {stored.tag}: {line}" for line in lines]
    if place.carried:
        problems += _stowaways(manifest, place.carried)
    return problems + _told(manifest, place.folder)


def file_problems(
    manifest: Manifest, folder: Path, advance: Callable[[float, float], None] = lambda _done, _total: None
) -> list[str]:
    """Return how a Bento's files differ from its manifest; models that travel along are not looked at."""
    listed = bento_files(folder)
    links = [path for path in listed if path.is_symlink()]
    found = file_digests(folder, (path for path in listed if not path.is_symlink()), advance)
    compiled = {path for path in found if path not in manifest.files and f"/{_BYTECODE}/" in f"/{path}"}
    problems = [f"{path.relative_to(folder).as_posix()} is a link" for path in links]
    problems += _compared(manifest.files, {path: digest for path, digest in found.items() if path not in compiled})
    return problems + _bytecode(folder, compiled)


def stored_problems(
    stored: Stored, folder: Path, advance: Callable[[float, float], None] = lambda _done, _total: None
) -> list[str]:
    """Return how a folder of the model store differs from what a manifest says of it."""
    listed = stored_files(folder, rows=stored.rows is not None)
    problems = _compared(stored.files, file_digests(folder, listed, advance)) + _card_problems(stored, folder)
    # A folder behind a link is not walked into, and would be seen by nobody.
    problems += [f"{_below(path, folder)} is a link" for path in folder.rglob("*") if path.is_symlink() and not path.is_file()]
    if stored.rows is None:
        return problems
    problems += _added(
        _below(path, folder)
        for path in (folder / ROWS).rglob("*")
        if not path.is_dir() and (path.is_symlink() or not _TABLE.fullmatch(path.relative_to(folder / ROWS).as_posix()))
    )
    try:
        rows = rows_digest(folder)
    except Exception as error:  # noqa: BLE001  LanceDB's errors over a broken file are of many kinds
        return [*problems, f"its chunks cannot be read: {str(error).splitlines()[0]}"]
    return problems if rows == stored.rows else [*problems, "its chunks were changed"]


def _compared(told: dict[str, str], found: dict[str, str]) -> list[str]:
    lines = [f"{path} is missing" for path in told if path not in found]
    lines += [f"{path} was changed" for path, digest in told.items() if path in found and found[path] != digest]
    return sorted([*lines, *_added(path for path in found if path not in told)])


def _added(paths: Iterable[str]) -> list[str]:
    return sorted(f"{path} was added" for path in paths)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _bytecode(folder: Path, compiled: set[str]) -> list[str]:
    """Return the line on bytecode beside code: Python may run it in place of what was verified, so it is not let pass."""
    if not compiled:
        return []
    return [
        f"{min(compiled)} was added, and {len(compiled)} files of bytecode in all: code that is run where it lies leaves them; "
        f"remove them: `find {folder} -name {_BYTECODE} -prune -exec rm -r {{}} +`"
    ]


def _stowaways(manifest: Manifest, models: Path) -> list[str]:
    """Return what travels with an exported Bento that the manifest does not name."""
    tags = [stored.tag for stored in manifest.stored().values()]
    folders = [models / tag.replace(":", "/", 1) for tag in tags]
    extra: set[Path] = set()
    for path in models.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        if any(path.is_relative_to(folder) for folder in folders):
            continue
        latest = path.name == "latest" and not path.is_symlink() and path.stat().st_size < len(max(tags, key=len))
        if latest and f"{path.parent.name}:{path.read_text(encoding='utf-8', errors='replace').strip()}" in tags:
            continue
        # One line a version, not one for each of its files.
        extra.add(models.joinpath(*path.relative_to(models).parts[:2]))
    links = [f"{CARRIED}/{_below(path, models)} is a link" for path in models.rglob("*") if path.is_symlink()]
    return _added(f"{CARRIED}/{_below(path, models)}" for path in extra) + sorted(links)


def _card_problems(stored: Stored, folder: Path) -> list[str]:
    """Return what BentoML's card of a model says that Ekiben did not write; when and by what versions it was written is free."""
    import yaml

    try:
        card = yaml.load((folder / CARD).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return [f"{CARD} cannot be read"]
    if not isinstance(card, dict):
        return [f"{CARD} was changed"]
    name, _, version = stored.tag.partition(":")
    told = {**_EMPTY, "name": name, "version": version}
    free = {"creation_time": str, "context": dict, "metadata": dict}
    wrong = [key for key, value in told.items() if card.get(key) != value]
    wrong += [key for key, kind in free.items() if not isinstance(card.get(key), kind)]
    wrong += [str(key) for key in card if key not in told and key not in free]
    if not wrong:
        wrong += [f"metadata.{key}" for key, value in card["metadata"].items() if not _tells(stored, key, value)]
        wrong += [f"context.{key}" for key in card["context"] if key not in _CONTEXT]
    return [f"{CARD} was changed: {', '.join(sorted(wrong))}"] if wrong else []


def _tells(stored: Stored, key: str, value: object) -> bool:
    """Whether a card's metadata are as they were written; a folder and a base may have had another name when it was made."""
    if key in {"recipe", "embedder"} or (key == "source" and not str(value).startswith("path:")):
        return stored.model_dump().get(key) == value
    return key in {"source", "base"} and isinstance(value, str)


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
