"""Folders in the BentoML model store: immutable, and known by a tag that is a function of what made them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException, NotFound

from services.lock import LockError
from services.manifest import BentoError
from services.settings import ROOT


def stored_path(tag: str) -> Path:
    """Return the folder of a tag; raises LockError when neither the Bento around this code nor the store has it."""
    if (packed := _in_bento(tag)) is not None:
        return packed
    try:
        return Path(bentoml.models.get(tag).path)
    except NotFound as error:
        raise LockError(f"{tag} is not in the model store; run `ekiben pack`") from error


def is_stored(tag: str) -> bool:
    """Whether that tag is in the Bento around this code, or in the store."""
    if _in_bento(tag) is not None:
        return True
    try:
        bentoml.models.get(tag)
    except NotFound:
        return False
    return True


def _in_bento(tag: str) -> Path | None:
    """Return a tag's folder where this code lies in a Bento that has its models with it, as in a container."""
    name, _, version = tag.partition(":")
    folder = ROOT.parent / "models" / name / version
    return folder if (ROOT.parent / "bento.yaml").is_file() and (folder / "model.yaml").is_file() else None


def store(tag: str, fill: Callable[[Path], None], *, labels: dict[str, str], metadata: dict[str, object]) -> None:
    """Let `fill` write a folder and register it; when it raises, nothing is registered."""
    with bentoml.models.create(tag, labels=labels, metadata=dict(metadata)) as model:
        fill(Path(model.path))


def stored_versions(name: str) -> list[tuple[str, str]]:
    """Return (version, time of creation) of each model of that name, oldest first."""
    try:
        found = bentoml.models.list(name)
    except NotFound:
        return []
    made = sorted((model.info.creation_time, model.tag.version or "") for model in found)
    return [(version, f"{created:%Y-%m-%d %H:%M}") for created, version in made]


def delete(tag: str) -> None:
    """Remove a tag; raises bentoml's NotFound."""
    bentoml.models.delete(tag)


def bento_home() -> Path:
    """Return BentoML's folder, with `models/`, `bentos/` and `tmp/` below it."""
    return Path(BentoMLContainer.bentoml_home.get())


def bento_path(tag: str) -> Path:
    """Return the folder of a Bento; raises BentoError when the store does not have it whole."""
    try:
        return Path(bentoml.bentos.get(tag).path)
    except NotFound as error:
        raise BentoError(f"{tag} is not in the store; build it by `ekiben bento build`, or see `ekiben bento list`") from error
    except (BentoMLException, ValueError) as error:
        raise BentoError(f"{tag} cannot be used: {error}") from error


def bento_versions(name: str) -> list[str]:
    """Return the versions of a Bento that the store has whole."""
    try:
        return sorted(bento.tag.version or "" for bento in bentoml.bentos.list(name))
    except NotFound:
        return []


def admit(folder: Path, name: str, version: str) -> None:
    """Let a finished Bento into the store: it is there whole or not at all. Raises BentoError."""
    target = bento_home() / "bentos" / name / version
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError as error:
        remedy = "let tmp and bentos be on one file system" if error.errno == errno.EXDEV else "remove what stands there"
        raise BentoError(f"{target} cannot be made: {error.strerror}; {remedy}, and build again") from error
    (target.parent / "latest").write_text(version, encoding="utf-8")
