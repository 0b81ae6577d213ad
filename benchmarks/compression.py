"""What shorter passages lose: `python -m benchmarks.compression CORPUS QUERIES` on BEIR-style files whose queries have `answers`.

For each question the four best passages by BM25 are cut to a share of their characters; the answer is kept when one of the
reference answers still stands in them word for word. Questions whose answer is in none of the four are left out. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag.compression import compressed
from rag.lexical import Bm25

SHARES = (0.3, 0.5, 0.7)
PASSAGES = 4


def rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def measure(corpus: Path, queries: Path, most: int) -> dict[str, Any]:
    """Return for each share how many answers are kept, and how much of the text is."""
    texts = {row["_id"]: row["text"] for row in rows(corpus)}
    asked = [row for row in rows(queries) if row.get("answers")]
    random.Random(1).shuffle(asked)  # noqa: S311  a sample that is the same every time
    found: dict[float, list[tuple[bool, int, int]]] = {share: [] for share in SHARES}
    with tempfile.TemporaryDirectory() as folder:
        Bm25.build(Path(folder), list(texts.values()), list(texts))
        index = Bm25.open(Path(folder))
        for row in asked[:most]:
            best = sorted(index.search(row["text"], PASSAGES).items(), key=lambda item: -item[1])
            passages = [texts[identity] for identity, _ in best]
            if not _has(passages, row["answers"]):
                continue
            for share in SHARES:
                short = compressed(passages, row["text"], share)
                found[share].append((_has(short, row["answers"]), sum(map(len, short)), sum(map(len, passages))))
    return {
        str(share): {
            "n": len(seen), "answers_kept": round(sum(kept for kept, _, _ in seen) / len(seen), 4),
            "characters_kept": round(sum(short for _, short, _ in seen) / sum(whole for _, _, whole in seen), 4),
        }
        for share, seen in found.items() if seen
    }  # fmt: skip


def _has(passages: Sequence[str], answers: Sequence[str]) -> bool:
    return any(answer in passage for passage in passages for answer in answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--most", type=int, default=400, help="questions [default: 400]")
    args = parser.parse_args()
    figures = measure(args.corpus, args.queries, args.most)
    for share, told in figures.items():
        print(
            f"share {share}: {told['answers_kept']:.1%} of {told['n']} answers kept in {told['characters_kept']:.1%} of the text"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
