"""The Bento that this folder makes: its version, and a build whose bytes follow from its inputs.

BentoML builds in a folder of its own; what it wrote is normalised and described, and then let into the store at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from adapters.manifest import read_manifest as read_adapter
from services.bundle import BundleError, LoadedBundle, Model, load_bundle
from services.digests import DigestCache, file_digests, rows_digest, stored_files
from services.lock import Lock, read_lock
from services.manifest import (
    MANIFEST,
    BentoError,
    Manifest,
    PackedAdapter,
    PackedFinder,
    PackedIndex,
    PackedModel,
    bento_files,
    locked,
)
from services.packed import README, version_here
from services.reproducible import normalise, settle
from services.settings import ROOT, Settings, load_settings
from services.store import admit, bento_home, stored_path
from services.target import Target

if TYPE_CHECKING:
    from services.packing import Progress

LOCKED = "env/python/requirements.txt"
_SHOWN = 15
_ELSEWHERE = ("BENTOML_CONFIG", "BENTOML_CONFIG_OPTIONS")


def tag_here() -> str:
    """Return the tag of the Bento that this folder makes; raises LockError before `ekiben pack`."""
    return f"{read_lock(ROOT / 'bundle.lock').name}:{version_here()}"


def build(progress: Progress, target: Target | None = None) -> str | None:
    """Build the Bento of this folder; return its tag, or None where the store has it. Raises BentoError.

    The same inputs give the same bytes: packed files, README.md, what bundle.lock names in the model store, and BentoML as
    it is locked. An interrupted build leaves nothing in the store.
    """
    name, version = tag_here().split(":")
    there = bento_home() / "bentos" / name / version
    if (there / MANIFEST).is_file():
        return None
    if there.exists():
        raise BentoError(f"{name}:{version} is in the store and not from `ekiben bento build`; `bentoml delete {name}:{version}`")
    (bento_home() / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bento_home() / "tmp", prefix="ekiben-build-") as scratch:
        progress.step(f"building {name}:{version}")
        folder = _built(Path(scratch), name, version)
        if version_here() != version:
            raise BentoError("files were changed while the Bento was built; build again")
        normalise(folder)
        describe(folder, progress, target).write(folder)
        settle(folder)
        admit(folder, name, version)
    return f"{name}:{version}"


def _built(home: Path, name: str, version: str) -> Path:
    """Let BentoML build in a home of its own over the same models; return the Bento's folder."""
    (home / "models").symlink_to(bento_home() / "models")
    # What this machine sets would be written into the Bento: a port, an engine elsewhere.
    unset = [f"--unset={variable}" for variable in (*_ELSEWHERE, *(f"EKIBEN_{field.upper()}" for field in Settings.model_fields))]
    bentoml = [sys.executable, "-m", "bentoml", "build", "--version", version]
    done = subprocess.run(  # noqa: S603  no shell
        ["env", *unset, f"BENTOML_HOME={home}", "BENTOML_DO_NOT_TRACK=True", *bentoml],  # noqa: S607  env is everywhere
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    folder = home / "bentos" / name / version
    if done.returncode != 0 or not (folder / "bento.yaml").is_file():
        tail = "\n".join((done.stderr + done.stdout).strip().splitlines()[-_SHOWN:])
        raise BentoError(f"`bentoml build` failed:\n{tail}")
    return folder


def describe(folder: Path, progress: Progress, target: Target | None = None) -> Manifest:
    """Return the manifest of a Bento as BentoML built it, of its own bundle.yaml and bundle.lock.

    Raises BentoError where BentoML is not the one that is locked: another one writes other files.
    """
    source = folder / "src"
    try:
        loaded, lock = load_bundle(source / "bundle.yaml", packed=True, target=target), read_lock(source / "bundle.lock")
    except BundleError as error:  # a file that the bundle names does not travel
        raise BentoError(f"what was packed cannot be opened: {error}; see `include` of bentofile.yaml") from error
    info = yaml.load((folder / "bento.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    pins = locked((folder / LOCKED).read_text(encoding="utf-8"))
    packages = {pin.name: pin.version for pin in pins}
    if packages.get("bentoml") != (here := installed_version("bentoml")):
        raise BentoError(f"BentoML {here} is installed and {packages.get('bentoml')} is locked; install the lock, or lock anew")
    cache = DigestCache(load_settings().cache_dir / "digests.json")
    contents = _Contents(loaded, lock, progress, cache)
    manifest = Manifest(
        name=info["name"], version=info["version"], python=str(info["image"]["python_version"]),
        model=contents.model(loaded.bundle.model, lock.model), draft=contents.draft(),
        adapters={name: contents.adapter(name, tag) for name, tag in sorted(lock.adapters.items())},
        indexes={name: contents.index(name, tag) for name, tag in sorted(lock.indexes.items())},
        names=contents.finder("names", lock.names, loaded.bundle.names),
        injection_model=contents.finder("injection model", lock.injection_model, loaded.bundle.injection_model),
        prompts={name: prompt.version for name, prompt in sorted(loaded.prompts.items())},
        policies={name: policy.version for name, policy in sorted(loaded.policies.items())},
        packages=packages, hashes=sum(len(pin.hashes) for pin in pins),
        files=file_digests(folder, bento_files(folder)),
    )  # fmt: skip
    cache.save()
    return manifest


class _Contents:
    """Entries of the manifest for what lies in the model store."""

    def __init__(self, loaded: LoadedBundle, lock: Lock, progress: Progress, cache: DigestCache) -> None:
        self._loaded = loaded
        self._lock = lock
        self._progress = progress
        self._cache = cache

    def model(self, entry: Model, tag: str) -> PackedModel:
        """Return the entry of a model that the engine generates with."""
        folder, facts = self._stored("model", tag)
        judged = folder / "ekiben_model.json"
        facts["license"] = entry.license or facts["license"]
        return PackedModel(
            **facts, source=entry.source, revision=_revision(entry.source, tag), sha256=entry.sha256,
            recipe=entry.quantization.recipe, quality=json.loads(judged.read_bytes()) if judged.is_file() else {},
        )  # fmt: skip

    def draft(self) -> PackedModel | None:
        """Return the entry of the model that guesses tokens."""
        drafted = self._loaded.drafted()
        return self.model(drafted.bundle.model, self._lock.draft) if drafted and self._lock.draft else None

    def adapter(self, name: str, tag: str) -> PackedAdapter:
        """Return the entry of an adapter."""
        folder, facts = self._stored(f"adapter {name}", tag)
        told = read_adapter(folder)
        rank = int(json.loads((folder / "adapter_config.json").read_bytes())["r"])
        accuracy = told.evaluation.get("accuracy")
        return PackedAdapter(**facts, base=told.base_source, rank=rank, dataset=told.dataset, accuracy=accuracy)

    def index(self, name: str, tag: str) -> PackedIndex:
        """Return the entry of a collection's index."""
        from rag.index import read_index

        folder, facts = self._stored(f"index {name}", tag)
        card = read_index(folder)
        return PackedIndex(**facts, embedder=card["embedder"], chunks=card["chunks"], documents=len(card["sources"]))

    def finder(self, what: str, tag: str | None, entry: Any) -> PackedFinder | None:
        """Return the entry of a model of the guards, None where the bundle has none."""
        return None if tag is None else PackedFinder(**self._stored(what, tag)[1], source=entry.source)

    def _stored(self, what: str, tag: str) -> tuple[Path, dict[str, Any]]:
        folder = stored_path(tag)
        files = stored_files(folder)
        self._progress.step(f"{what}: digests of {tag}")
        return folder, {
            "tag": tag, "bytes": sum(path.stat().st_size for path in files), "rows": rows_digest(folder),
            "files": file_digests(folder, files, self._progress.advance, self._cache), "license": _license(folder),
        }  # fmt: skip


def _revision(source: str, tag: str) -> str:
    kind, _, rest = source.partition(":")
    return tag.rpartition(":")[2] if kind == "path" else rest.rpartition("@" if kind == "hf" else "==")[2]


def _license(folder: Path) -> str | None:
    """Return the licence that a model card or a pipeline tells, or None."""
    card, pipeline = folder / README, folder / "meta.json"
    if card.is_file() and (text := card.read_text(encoding="utf-8")).startswith("---\n"):
        front = yaml.safe_load(text.split("---\n")[1]) or {}
        return str(front["license"]) if "license" in front else None
    return json.loads(pipeline.read_bytes()).get("license") or None if pipeline.is_file() else None
