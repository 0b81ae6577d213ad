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


def check_adapter(folder: Path, *, base_source: str, max_lora_rank: int) -> Manifest:
    """Read and check an adapter folder without importing torch.

    Raises AdapterError when a file is missing or altered, the adapter was made for another base, its rank is above
    `max_lora_rank`, or vLLM cannot serve its kind.
    """
    for name in (CONFIG, WEIGHTS, MANIFEST):
        if not (folder / name).is_file():
            msg = f"{folder / name} is missing: an adapter folder holds {CONFIG}, {WEIGHTS} and {MANIFEST}"
            raise AdapterError(msg)
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        config = json.loads((folder / CONFIG).read_bytes())
        rank = int(config["r"])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        msg = f"{folder}: cannot read its {MANIFEST} or {CONFIG}: {error}"
        raise AdapterError(msg) from error
    if manifest.base_source != base_source:
        msg = (
            f"{folder / MANIFEST}: made for base {manifest.base_source!r}, but the bundle's model is {base_source!r}; "
            "train it on this base or take an adapter that was"
        )
        raise AdapterError(msg)
    if rank > max_lora_rank:
        msg = f"{folder / CONFIG}: rank r={rank} is over engine.max_lora_rank={max_lora_rank}; raise max_lora_rank in the bundle"
        raise AdapterError(msg)
    for key, wanted in (("peft_type", "LORA"), ("use_dora", False), ("modules_to_save", None)):
        given = config.get(key) or wanted
        if given != wanted:
            raise AdapterError(f"{folder / CONFIG}: {key} is {given!r}; vLLM serves plain LoRA only: train with {key}={wanted!r}")
    found = digest_file(folder / WEIGHTS)
    if found != manifest.sha256:
        msg = f"{folder / WEIGHTS}: sha256 is {found}, its manifest says {manifest.sha256}; the file was altered or cut short"
        raise AdapterError(msg)
    return manifest
