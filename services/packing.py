"""`ekiben pack`: bring everything that a bundle names into the model store, and write bundle.lock.

Each tag is a function of its inputs, so what is there already is left alone: packing twice does nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from adapters.manifest import check_adapter, digest_files
from models.making import ModelRecipe, make_model, model_version
from services.bundle import LoadedBundle
from services.lock import Lock
from services.recipes import RECIPES
from services.settings import ROOT
from services.store import is_stored, store


class Progress(Protocol):
    """What packing tells of its work."""

    def step(self, text: str) -> None:
        """A new step begins."""
        ...

    def advance(self, done: float, total: float) -> None:
        """The step under way has come this far."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


def pack(loaded: LoadedBundle, progress: Progress) -> Lock:
    """Pack a bundle; raises what the parts raise. Parts that were finished before an error stay in the store."""
    model = pack_model(loaded, progress)
    adapters = {name: pack_adapter(loaded, name, progress) for name in loaded.bundle.adapters}
    indexes = {name: pack_index(loaded, name, progress) for name in loaded.bundle.collections}
    return Lock(name=loaded.bundle.name, model=model, adapters=adapters, indexes=indexes)


def _ensure(tag: str, what: str, fill: Callable[[Path], Any], metadata: dict[str, object], progress: Progress) -> str:
    if is_stored(tag):
        progress.note(f"{what}: {tag} is in the store")
        return tag
    progress.step(f"{what}: making {tag}")
    store(tag, fill, labels={"made-by": "ekiben"}, metadata=metadata)
    progress.note(f"{what}: {tag}")
    return tag


def pack_model(loaded: LoadedBundle, progress: Progress) -> str:
    """Make the base model unless the store has it; return its tag."""
    entry = loaded.bundle.model
    quantization = entry.quantization
    recipe = ModelRecipe(
        source=entry.source, sha256=entry.sha256, recipe=quantization.recipe,
        max_nll_increase=quantization.allowed_nll_increase, root=loaded.root,
        requirements=ROOT / "requirements" / "quantize.txt", environment=ROOT / ".venv-quantize",
        calibrated=RECIPES[quantization.recipe].calibrated,
        calibration=loaded.root / quantization.calibration if quantization.calibration else None,
    )  # fmt: skip
    tag = f"{entry.name}:{model_version(recipe)}"
    metadata: dict[str, object] = {"source": entry.source, "recipe": quantization.recipe}
    return _ensure(tag, "model", lambda folder: make_model(recipe, folder, progress.advance, progress.note), metadata, progress)


def pack_adapter(loaded: LoadedBundle, name: str, progress: Progress) -> str:
    """Check an adapter and copy it into the store; return its tag."""
    bundle = loaded.bundle
    source = loaded.root / bundle.adapters[name].path
    check_adapter(source, base_source=bundle.model.source, max_lora_rank=bundle.engine.max_lora_rank)
    tag = f"{bundle.name}-adapter-{name}:{digest_files(source)}"

    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)

    return _ensure(tag, f"adapter {name}", fill, {"base": bundle.model.source}, progress)


def pack_index(loaded: LoadedBundle, name: str, progress: Progress) -> str:
    """Build a collection's index unless the store has it; return its tag."""
    from rag.embedding import MultilingualE5
    from rag.index import build_index, index_digest

    bundle, entry = loaded.bundle, loaded.bundle.collections[name]
    documents = loaded.root / entry.path
    tag = f"{bundle.name}-index-{name}:{index_digest(documents, entry.chunk_characters, bundle.embedder.name)}"

    def fill(folder: Path) -> None:
        report = build_index(
            documents, folder, chunk_characters=entry.chunk_characters, embedder=bundle.embedder.name,
            embeddings=MultilingualE5(), progress=progress.advance,
        )  # fmt: skip
        progress.note(f"collection {name}: read {len(report.read)} files")
        for file, reason in report.refused.items():
            progress.note(f"collection {name}: refused {file}: {reason}")

    return _ensure(tag, f"collection {name}", fill, {"embedder": bundle.embedder.name}, progress)
