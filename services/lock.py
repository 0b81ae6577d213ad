"""bundle.lock: the tags in the model store that a bundle's names stand for. Written by `ekiben pack`, read by the services."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class LockError(RuntimeError):
    """bundle.lock is missing, not of this version, or names what the store does not have; the message says what to run."""


class Lock(BaseModel):
    """Tags (`name:version`) of everything that was packed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name of the bundle, and so of the Bento")
    model: str
    draft: str | None = Field(default=None, description="the model that guesses tokens")
    adapters: dict[str, str] = Field(default_factory=dict)
    indexes: dict[str, str] = Field(default_factory=dict)
    names: str | None = Field(default=None, description="the model that finds names")
    injection_model: str | None = Field(default=None, description="the classifier beside ours")

    def tags(self) -> list[str]:
        """Return every tag, the model's first."""
        return [*self.models(), *self.adapters.values(), *self.indexes.values(), *self.finders()]

    def models(self) -> list[str]:
        """Return the tags of what the engine generates with, the base model's first."""
        return [self.model, self.draft] if self.draft else [self.model]

    def finders(self) -> list[str]:
        """Return the tags of the guards' models."""
        return [tag for tag in (self.names, self.injection_model) if tag]

    def adapter_tag(self, name: str, version: str) -> str:
        """Return the tag under which the store keeps a version of an adapter."""
        return adapter_tag(self.name, name, version)

    def adapter_versions(self) -> dict[str, str]:
        """Return the version of each adapter that was packed."""
        return {name: tag.rpartition(":")[2] for name, tag in self.adapters.items()}

    def write(self, path: Path) -> None:
        """Write the file; the same content gives the same bytes."""
        path.write_text(json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def adapter_tag(bundle: str, name: str, version: str) -> str:
    """Return the tag of an adapter's version in the model store."""
    return f"{bundle}-adapter-{name}:{version}"


def read_lock(path: Path) -> Lock:
    """Read bundle.lock; raises LockError."""
    try:
        return Lock.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        msg = f"{path} does not exist; run `ekiben pack` first"
        raise LockError(msg) from error
    except ValidationError as error:
        msg = f"{path} is not of this version; run `ekiben pack` again"
        raise LockError(msg) from error


def bento_version(root: Path, files: list[Path]) -> str:
    """Return the version of the Bento: 16 hex digits over the names and contents of the files that are packed."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:16]
