"""manifest.json: what is in a Bento, down to the digest of every file. Written by `ekiben bento build`.

It names the Bento's version, which follows from the packed files and not from the manifest, and is the one thing to sign.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST = "manifest.json"
CARRIED = "models"
"""Where an exported Bento has its models."""
_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[^\s;\\]+)", re.MULTILINE)
_HASH = re.compile(r"--hash=(?P<kind>\w+):(?P<digest>[0-9a-f]+)")


class BentoError(RuntimeError):
    """A Bento that is not there, not made by `ekiben bento build`, or could not be made; the message says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stored(_Part):
    """A folder of the model store."""

    tag: str = Field(description="NAME:VERSION, where the version is a function of what made it")
    bytes: int = Field(description="size of `files`")
    files: dict[str, str] = Field(description="path -> sha256 in hex")
    rows: str | None = Field(default=None, description="sha256 over an index's chunks and vectors, whatever their order")
    license: str | None = Field(default=None, description="where what is packed tells it")


class PackedModel(Stored):
    """A model that the engine generates with."""

    source: str = Field(description="as bundle.yaml writes it")
    revision: str = Field(description="commit or version of the source; for a folder the tag's own version")
    sha256: str | None = Field(default=None, description="digest of the source's file, where bundle.yaml gives it")
    recipe: str = Field(description="how it was quantized")
    quality: dict[str, Any] = Field(default_factory=dict, description="how it was judged when it was made")


class PackedAdapter(Stored):
    """A LoRA adapter."""

    base: str = Field(description="source of the model that it was trained for")
    rank: int
    dataset: str
    accuracy: float | None = None


class PackedIndex(Stored):
    """The index of a collection."""

    embedder: str
    chunks: int
    documents: int


class PackedFinder(Stored):
    """A model of the guards."""

    source: str


class Manifest(_Part):
    """The content of `manifest.json`."""

    format: Literal[1] = 1
    name: str = Field(description="of the bundle, and so of the Bento")
    version: str = Field(description="16 hex digits over the packed files")
    model: PackedModel
    draft: PackedModel | None = None
    adapters: dict[str, PackedAdapter] = Field(default_factory=dict)
    indexes: dict[str, PackedIndex] = Field(default_factory=dict)
    names: PackedFinder | None = None
    injection_model: PackedFinder | None = None
    prompts: dict[str, str] = Field(default_factory=dict, description="name -> version, a hash of its content")
    policies: dict[str, str] = Field(default_factory=dict, description="name -> version, a hash of its content")
    python: str
    packages: dict[str, str] = Field(description="name -> locked version")
    hashes: int = Field(description="how many hashes the lock has for them")
    files: dict[str, str] = Field(description="path in the Bento -> sha256 in hex, of every file but this one")

    @property
    def tag(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    def stored(self) -> dict[str, Stored]:
        """Return what the model store holds for the Bento, by what it is: `model`, `adapter NAME`, `index NAME` and so on."""
        single = {"model": self.model, "draft": self.draft, "names": self.names, "injection model": self.injection_model}
        found: dict[str, Stored] = {what: one for what, one in single.items() if one is not None}
        found |= {f"adapter {name}": one for name, one in self.adapters.items()}
        return found | {f"index {name}": one for name, one in self.indexes.items()}

    def write(self, folder: Path) -> None:
        """Write the file into a Bento; the same content gives the same bytes."""
        text = json.dumps(self.model_dump(exclude_none=True), indent=2, sort_keys=True, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a Bento's manifest; raises BentoError."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        told = "it was not made by `ekiben bento build`" if (folder / "bento.yaml").is_file() else "that is no Bento"
        raise BentoError(f"{folder} has no {MANIFEST}: {told}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise BentoError(f"{path}: {where}: {first['msg']}; it was altered, or made by another version of Ekiben") from error


def manifest_digest(folder: Path) -> str:
    """Return `sha256:...` of a Bento's manifest, which stands for all of the Bento; raises BentoError."""
    read_manifest(folder)
    return f"sha256:{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}"


def bento_files(folder: Path) -> list[Path]:
    """Return the files of a Bento that the manifest lists: all but itself and models that travel along."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and path.relative_to(folder).parts[0] not in {MANIFEST, CARRIED}
    ]


class Pin(NamedTuple):
    """A package in a lock: `hashes` are of all files that may be installed for it, `algorithm:hex`."""

    name: str
    version: str
    hashes: list[str]


def locked(text: str) -> list[Pin]:
    """Return the packages of a lock as `uv pip compile` writes it, in its order."""
    found = list(_PINNED.finditer(text))
    ends = [one.start() for one in found[1:]] + [len(text)]
    return [
        Pin(one["name"], one["version"], [f"{h['kind']}:{h['digest']}" for h in _HASH.finditer(text, one.end(), end)])
        for one, end in zip(found, ends, strict=True)
    ]


class Change(NamedTuple):
    """What differs between two Bentos: `before` or `after` is None for what only the other has."""

    what: str
    before: str | None
    after: str | None


def changes(one: Manifest, other: Manifest) -> list[Change]:
    """Return what became of `one` in `other`: models, adapters, indexes, prompts, policies, packages, files."""
    old, new = _facts(one), _facts(other)
    names = [*old, *(name for name in new if name not in old)]
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _facts(manifest: Manifest) -> dict[str, str]:
    """Return everything of a manifest that may change, one value each."""
    facts = {"python": manifest.python}
    for what, stored in manifest.stored().items():
        facts[what] = stored.tag
        digest = hashlib.sha256(json.dumps([stored.files, stored.rows], sort_keys=True).encode()).hexdigest()
        facts[f"{what}: content"] = digest[:16]
        if isinstance(stored, PackedModel):
            facts |= {f"{what}: source": stored.source, f"{what}: recipe": stored.recipe}
    facts |= {f"prompt {name}": version for name, version in manifest.prompts.items()}
    facts |= {f"policy {name}": version for name, version in manifest.policies.items()}
    facts |= {f"package {name}": version for name, version in manifest.packages.items()}
    return facts | {f"file {path}": digest[:16] for path, digest in manifest.files.items()}
