"""Folders in the BentoML model store: immutable, and known by a tag that is a function of what made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bentoml
from bentoml.exceptions import NotFound

from services.lock import LockError


def stored_path(tag: str) -> Path:
    """Return the folder of a tag; raises LockError when the store does not have it."""
    try:
        return Path(bentoml.models.get(tag).path)
    except NotFound as error:
        raise LockError(f"{tag} is not in the model store; run `ekiben pack`") from error


def is_stored(tag: str) -> bool:
    """Whether the store has that tag."""
    try:
        bentoml.models.get(tag)
    except NotFound:
        return False
    return True


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


def has_bento(tag: str) -> bool:
    """Whether the store has that Bento."""
    try:
        bentoml.bentos.get(tag)
    except NotFound:
        return False
    return True
