"""Measure what a second run of an ingestion costs where nothing changed, and where one section of one file did.

    OMP_NUM_THREADS=1 python -m benchmarks.ingest --chunks 10000 --real 1000

The folder is made up: Markdown files of 20 sections, half of them Chinese. It is read, cut and indexed with vectors that cost
next to nothing; the real model embeds `--real` of the chunks, which gives its rate. The first run is said as the sum of both.
Prints the processor's seconds of each part (so that other work on the machine counts little), and what share of the first run the
others take; the last line is JSON.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from benchmarks.retrieval import SEED, made_texts
from rag.embedded import EmbeddedStore
from rag.embedding import DIMENSIONS, MultilingualE5, NoEmbeddings
from rag.index import Recipe, build_index, index_digest, unchanged_report
from rag.store import searched
from rag.survey import Place

SECTIONS = 20


class Instant(Embeddings):
    """Vectors that are a function of their text, without a model."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector for each text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a unit vector."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
        return (vector / np.linalg.norm(vector)).tolist()


def write_folder(folder: Path, chunks: int) -> None:
    """Write files of SECTIONS sections, each a chunk."""
    texts = list(made_texts(np.random.default_rng(SEED), chunks))[:chunks]
    for start in range(0, chunks, SECTIONS):
        sections = [f"## Section {number}\n{text}\n" for number, text in enumerate(texts[start : start + SECTIONS])]
        (folder / f"{start // SECTIONS:06}.md").write_text("# Manual\n" + "".join(sections), encoding="utf-8")


def timed(seconds: dict[str, float], part: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call it, and note the seconds of work, all threads together."""
    started = time.process_time()
    result = function(*arguments, **named)
    seconds[part] = time.process_time() - started
    return result


def main() -> None:
    """Ingest three times, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=1_000, help="chunks that the real embedding model embeds, for its rate")
    options = parser.parse_args()
    recipe = Recipe(900, MultilingualE5.name)
    first: dict[str, float] = {}
    unchanged: dict[str, float] = {}
    changed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root, before, after = (Path(temporary) / name for name in ("documents", "before", "after"))
        for folder in (root, before, after):
            folder.mkdir()
        write_folder(root, options.chunks)
        place = Place(root, ["."])
        survey = timed(first, "survey", place.survey)
        digest = timed(first, "digest", index_digest, survey, recipe)
        scratch = Path(temporary) / "scratch"
        report = timed(first, "read, cut and index", build_index, survey, before, recipe, embeddings=Instant(), scratch=scratch)

        survey = timed(unchanged, "survey", place.survey)
        if timed(unchanged, "digest", index_digest, survey, recipe) != digest:
            raise SystemExit("the digest of an unchanged folder is another one")
        timed(unchanged, "report", unchanged_report, survey, before)

        with (root / "000000.md").open("a", encoding="utf-8") as file:
            file.write("## One more\nA section that was not there.\n")
        survey = timed(changed, "survey", place.survey)
        more = timed(changed, "read, cut and index", build_index, survey, after, recipe, embeddings=Instant(), earlier=before)

        every = max(1, report.chunks // options.real)
        some = [searched(chunk) for many, _ in EmbeddedStore(before, NoEmbeddings()).batches() for chunk in many][::every]
    model, seconds = MultilingualE5(), {}
    model.embed_query("warm")
    timed(seconds, "embed", model.embed_documents, some)
    first["embed"] = report.chunks * seconds["embed"] / len(some)
    told: dict[str, Any] = {
        "chunks": report.chunks, "files": len(report.new), "real_chunks": len(some),
        "embedder_chunks_per_cpu_second": len(some) / seconds["embed"], "embedded_after_one_section": more.embedded,
        "first": first, "unchanged": unchanged, "one_section": changed,
        "unchanged_share": sum(unchanged.values()) / sum(first.values()),
        "one_section_share": sum(changed.values()) / sum(first.values()),
        "unchanged_share_without_embedding": sum(unchanged.values()) / (sum(first.values()) - first["embed"]),
    }  # fmt: skip
    for name, value in told.items():
        print(f"{name}: {value}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
