"""Folders in the BentoML model store: immutable, and known by a tag that is a function of what made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bentoml
from bentoml.exceptions import NotFound


def stored_path(tag: str) -> Path:
    """Return the folder of a tag; raises bentoml's NotFound."""
    return Path(bentoml.models.get(tag).path)


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


def has_bento(tag: str) -> bool:
    """Whether the store has that Bento."""
    try:
        bentoml.bentos.get(tag)
    except NotFound:
        return False
    return True
