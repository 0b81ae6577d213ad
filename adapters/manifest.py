"""What an adapter says of itself, and the check that it fits the base model before anything starts.

An adapter folder holds PEFT's two files (`adapter_config.json`, `adapter_model.safetensors`), Ekiben's manifest
(`ekiben.json`) and a model card (`README.md`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST = "ekiben.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class Manifest(BaseModel):
    """The content of `ekiben.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base_source: str = Field(description="source of the base model, as bundle.yaml writes it")
    dataset: str = Field(description="what it was trained on, with origin and licence")
    system_prompt: str = Field(description="system prompt of the training rows")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="digest of the weights file")]
    labels: list[str] = Field(default_factory=list, description="every answer it was trained to give, where they are few")
    training: dict[str, Any] = Field(default_factory=dict, description="how it was trained")
    evaluation: dict[str, Any] = Field(default_factory=dict, description="how it was measured, beside the base model")


class AdapterError(ValueError):
    """An adapter that must not be served; the message names the file, the field and the remedy."""


def digest_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path) -> str:
    """Return 16 hex digits over the adapter's files: its version."""
    digest = hashlib.sha256()
    for name in (CONFIG, MANIFEST, WEIGHTS):
        digest.update(f"{name}\0{digest_file(folder / name)}\n".encode())
    return digest.hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `ekiben.json` beside the weights."""
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read `ekiben.json`; raises AdapterError that names the field."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise AdapterError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise AdapterError(f"{folder / MANIFEST}: {where}: {first['msg']}; `ekiben adapter train` writes it") from error
