"""`ekiben pack`: bring everything that a bundle names into the model store, and write bundle.lock.

Each tag is a function of its inputs, so what is there already is left alone: packing twice does nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapters.gate import BaseModel, check_adapter
from adapters.manifest import AdapterError, digest_files
from models.layers import linear_layers
from models.making import ModelError, ModelRecipe, make_model, model_version
from models.source import SourceError, fetch_spacy
from rag.access import Access
from services.bundle import LoadedBundle
from services.caller import DEFAULT_TENANT
from services.digests import file_digests, stored_files
from services.engine import missing_libraries, usable_cores, vllm_arguments, vllm_environment
from services.engine_process import engine_process, free_port
from services.errors import GuardUnavailable
from services.indexes import index_name, publish_index
from services.lock import Lock, LockError, adapter_tag
from services.plugins import importable
from services.recipes import RECIPES, refusal
from services.settings import ROOT, load_settings
from services.slots import smoke
from services.store import is_stored, store, stored_path, stored_versions
from services.target import find_device, find_target

if TYPE_CHECKING:
    from rag.report import Report
    from rag.survey import Place


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
    try_plugins(loaded, progress)
    model = pack_model(loaded, progress)
    draft = pack_draft(loaded, model, progress)
    folders = {name: loaded.root / entry.path for name, entry in loaded.bundle.adapters.items()}
    adapters = pack_adapters(loaded, model, folders, progress)
    indexes = {name: pack_index(loaded, name, progress) for name, of in loaded.bundle.collections.items() if not of.retriever}
    carried = {name: tag for name, tag in indexes.items() if not loaded.bundle.collections[name].store}
    return Lock(
        name=loaded.bundle.name, model=model, draft=draft, adapters=adapters, indexes=carried,
        names=pack_names(loaded, progress), injection_model=pack_injection_model(loaded, progress),
    )  # fmt: skip


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


def pack_draft(loaded: LoadedBundle, model: str, progress: Progress) -> str | None:
    """Make the model that guesses tokens unless the store has it; return its tag, None where the bundle has none.

    Raises ModelError where it has other tokens than the base model `model`.
    """
    drafted = loaded.drafted()
    if drafted is None:
        return None
    tag = pack_model(drafted, progress)
    ours, theirs = (_vocabulary(stored_path(one)) for one in (model, tag))
    if ours != theirs:
        raise ModelError(
            f"engine.speculative_config.model: {drafted.bundle.model.source} has other tokens than the base model; "
            "take a smaller model of the base's family"
        )
    return tag


def _vocabulary(folder: Path) -> object:
    """Return a model's tokens by id, and how many its head has."""
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    size = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    return size, tokenizer["model"]["vocab"], tokenizer["added_tokens"]


def pack_adapters(loaded: LoadedBundle, model: str, folders: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """Check adapters by the gate, let those that are new say a few words in a real engine, and copy them into the store.

    `folders` maps names to folders; returns the tag of each. Raises AdapterError and EngineFailed.
    """
    bundle, base = loaded.bundle, adapter_base(loaded, model)
    tags: dict[str, str] = {}
    new: dict[str, Path] = {}
    for name, folder in folders.items():
        manifest = check_adapter(folder, base=base, max_lora_rank=bundle.engine.max_lora_rank)
        if manifest.name != name:
            msg = f"{folder}: its manifest's name is {manifest.name!r}, not {name!r}; rename one of them"
            raise AdapterError(msg)
        version = digest_files(folder)
        tags[name] = adapter_tag(bundle.name, name, version)
        if not is_stored(tags[name]):
            new[f"{name}@{version}"] = folder
    if new:
        progress.step(f"trying in an engine: {', '.join(new)}")
        if problem := asyncio.run(try_adapters(loaded, model, new)):
            progress.note(f"not tried in an engine: {problem}")
    for name, folder in folders.items():
        copy = partial(shutil.copytree, folder, dirs_exist_ok=True)
        _ensure(tags[name], f"adapter {name}", copy, {"base": bundle.model.source}, progress)
    return tags


def adapter_base(loaded: LoadedBundle, model: str) -> BaseModel:
    """Return what the gate compares adapters with: the packed model `model`. Raises LockError when it is not in the store."""
    if not is_stored(model):
        raise LockError(f"{model} is not in the model store; run `ekiben pack` first")
    folder = stored_path(model)
    return BaseModel(loaded.bundle.model.source, linear_layers(folder), folder)


async def try_adapters(loaded: LoadedBundle, model: str, folders: Mapping[str, Path]) -> str | None:
    """Load adapters into an engine and let each say a few words; returns why it could not be tried here, or None.

    Raises AdapterError for one that cannot generate, and EngineFailed.
    """
    settings = load_settings()
    device = find_device(settings)
    if problem := refusal(loaded.bundle.model.quantization.recipe, find_target(device)) or missing_libraries(device):
        return problem
    port, cores = free_port(), usable_cores()
    short = {
        "max_model_len": 512,
        "max_num_seqs": 2,
        "kv_cache_memory_bytes": 2**28,
        "enforce_eager": True,
        "max_num_batched_tokens": None,
    }
    bundle = loaded.bundle.model_copy(update={"engine": loaded.bundle.engine.model_copy(update=short)})
    arguments = vllm_arguments(bundle, model=stored_path(model), adapters=dict(folders), device=device, port=port, free_bytes=0)
    async with engine_process(arguments, vllm_environment(device, cores), port=port) as engine:
        for label in folders:
            await smoke(engine.client, label)
    return None


def try_plugins(loaded: LoadedBundle, progress: Progress) -> None:
    """Make the collections' own rerankers and retrievers, the latter for a caller without roles; raises BadPlugin."""
    importable(loaded.root)
    for name, entry in loaded.bundle.collections.items():
        for setting, path in entry.plugins.items():
            if setting == "rerank":
                from rag.ranking import load_reranker

                load_reranker(path)
            elif setting == "retriever":
                from rag.plugged import make_retriever, retriever_factory

                make_retriever(path, retriever_factory(path), Access(DEFAULT_TENANT, frozenset()))
                progress.note(f"collection {name}: is answered by {path}")


def pack_index(loaded: LoadedBundle, name: str, progress: Progress) -> str:
    """Build a collection's index unless the store has it, and note what became of the documents; return its tag."""
    tag, report = ingest(loaded, name, progress)
    for line in report.lines():
        progress.note(f"collection {name}: {line}")
    return tag


def ingest(loaded: LoadedBundle, name: str, progress: Progress) -> tuple[str, Report]:
    """Bring a collection's index into the store, and to its server where it has one; return its tag and the report.

    The newest index of the collection lends what did not change. Raises UnusableIndex, GuardUnavailable, StoreError, BadPlugin.
    """
    tag, report = _ingested(loaded, name, progress)
    if loaded.bundle.collections[name].store:
        progress.step(f"collection {name}: to its server")
        publish_index(loaded, name, tag, progress.advance)
    return tag, report


def _ingested(loaded: LoadedBundle, name: str, progress: Progress) -> tuple[str, Report]:
    from rag.embedding import MultilingualE5
    from rag.index import Recipe, build_index, index_digest, unchanged_report

    bundle, entry = loaded.bundle, loaded.bundle.collections[name]
    progress.step(f"collection {name}: looking at the documents")
    survey = documents_of(loaded, name).survey()
    version, check = _passage_check(loaded, entry.policy, progress)
    recipe = Recipe(entry.chunk_characters, bundle.embedder.name, version)
    stored = index_name(bundle.name, name)
    digest = index_digest(survey, recipe)
    tag = f"{stored}:{digest}"
    if is_stored(tag):
        progress.note(f"collection {name}: {tag} is in the store")
        return tag, unchanged_report(survey, stored_path(tag))
    versions = stored_versions(stored)
    scratch = load_settings().cache_dir / "ingest" / stored
    reports: list[Report] = []

    def fill(folder: Path) -> None:
        reports.append(
            build_index(
                survey, folder, recipe, embeddings=MultilingualE5(), check=check, scratch=scratch / digest,
                earlier=stored_path(f"{stored}:{versions[-1][0]}") if versions else None, progress=progress.advance,
            )
        )  # fmt: skip

    _ensure(tag, f"collection {name}", fill, {"embedder": bundle.embedder.name}, progress)
    shutil.rmtree(scratch, ignore_errors=True)
    return tag, reports[0]


def documents_of(loaded: LoadedBundle, name: str) -> Place:
    """Return where a collection's documents are."""
    from rag.survey import Place

    entry = loaded.bundle.collections[name]
    importable(loaded.root)
    return Place(loaded.root, entry.places, entry.labels, entry.tenant, entry.allow_hosts, entry.loader or "")


def _passage_check(loaded: LoadedBundle, policy: str | None, progress: Progress) -> tuple[str, Callable[[str], str | None]]:
    """Return a version and a function that reviews a chunk under a policy, or lets everything pass where there is none."""
    if policy is None:
        return "", lambda text: text
    from guards.detectors import Detectors
    from guards.guard import Guard, GuardFailure
    from guards.names import open_names
    from guards.onnx_classifier import OnnxClassifier

    rules = loaded.policies[policy]
    detectors = {check.detector for check in rules.content.passages}
    names = pack_names(loaded, progress) if "names" in detectors else None
    injection = pack_injection_model(loaded, progress) if "injection" in detectors else None
    key = load_settings().hash_key
    kit = Detectors(
        open_names(stored_path(names)).find if names else None,
        OnnxClassifier(stored_path(injection)).score if injection else None,
        # Hashes are the same in every index of a policy also where no key is set.
        key or rules.version.encode(),
    )

    def check(text: str) -> str | None:
        try:
            return Guard(rules, kit).review_passage(text)
        except GuardFailure as error:
            raise GuardUnavailable(f"policy {rules.label} could not look at every chunk: {error}") from error

    versions = [tag.rpartition(":")[2] for tag in (names, injection) if tag]
    # A key makes other hashes; the index must not seem the same.
    keyed = [hashlib.sha256(kit.key).hexdigest()[:8]] if key else []
    return "+".join([rules.label, *versions, *keyed]), check


def pack_names(loaded: LoadedBundle, progress: Progress) -> str | None:
    """Bring the model that finds names into the store unless it is there; return its tag, None where the bundle has none.

    Raises SourceError, and OnnxError for one in ONNX that cannot be used.
    """
    entry = loaded.bundle.names
    if entry is None:
        return None
    folder = loaded.root / entry.source.removeprefix("path:")
    digest = _folder_digest(folder) if entry.source.startswith("path:") else str(entry.sha256)
    tag = f"{loaded.bundle.name}-names:{digest[:16]}"

    def fill(target: Path) -> None:
        if entry.source.startswith("path:") and (folder / "model.onnx").is_file():
            from guards.onnx_names import OnnxNames

            _try_onnx("names", lambda: OnnxNames(folder), progress)
            shutil.copytree(folder, target, dirs_exist_ok=True)
            return
        with tempfile.TemporaryDirectory() as empty:
            found = fetch_spacy(entry.source, Path(empty), root=loaded.root, sha256=digest)
            shutil.copytree(found, target, dirs_exist_ok=True)

    return _ensure(tag, "names", fill, {"source": entry.source}, progress)


def pack_injection_model(loaded: LoadedBundle, progress: Progress) -> str | None:
    """Copy the classifier beside ours into the store unless it is there; return its tag, None where the bundle has none.

    Raises SourceError, and OnnxError where it cannot be used.
    """
    entry = loaded.bundle.injection_model
    if entry is None:
        return None
    folder = loaded.root / entry.source.removeprefix("path:")
    tag = f"{loaded.bundle.name}-injection:{_folder_digest(folder)[:16]}"

    def fill(target: Path) -> None:
        from guards.onnx_classifier import OnnxClassifier

        _try_onnx("injection model", lambda: OnnxClassifier(folder), progress)
        shutil.copytree(folder, target, dirs_exist_ok=True)

    return _ensure(tag, "injection model", fill, {"source": entry.source}, progress)


def _folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of a folder's files; raises SourceError where there is none."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; name one that holds the model")
    files = file_digests(folder, stored_files(folder))
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in files.items()).encode()).hexdigest()


def _try_onnx(what: str, open_model: Callable[[], object], progress: Progress) -> None:
    """Open a model in ONNX, which tries it; raises OnnxError for one that cannot be used where onnxruntime is here to tell."""
    from guards.onnx_model import MissingPackage

    try:
        open_model()
    except MissingPackage as error:
        progress.note(f"{what}: not tried: {error}; the box needs it too")
