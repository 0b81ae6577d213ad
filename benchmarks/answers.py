"""The figures of `ekiben rag answers` on answers whose worth is known by construction.

Of each question the sentence of its document that holds a reference is the answer, with the right citation and with that of
another passage; then a sentence of a third document, and the reference alone. Run: `python -m benchmarks.answers FOLDER...`,
where a folder holds corpus.jsonl.gz, queries.jsonl.gz with `answers`, and qrels.tsv. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

from guards.sentences import split
from rag.answers import Row, summary
from rag.judgements import read_judged, read_questions
from services.grading import Shown, grade, language

FIGURES = ("contains", "groundedness", "citation_precision", "false_abstention")


def main() -> None:
    """Grade and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--questions", type=int, default=400, help="of each folder")
    arguments = parser.parse_args()
    rng = random.Random(0)  # noqa: S311  a benchmark
    told: dict[str, dict[str, float]] = {}
    times: list[float] = []
    for folder in arguments.folders:
        judged = read_judged(folder / "corpus.jsonl.gz", folder / "queries.jsonl.gz", folder / "qrels.tsv")
        texts = [text for _, text in judged.documents.values()]
        rows: dict[str, list[Row]] = defaultdict(list)
        for question in [one for one in read_questions(folder / "queries.jsonl.gz") if one.id in judged.grades][
            : arguments.questions
        ]:
            passage = judged.documents[next(iter(judged.grades[question.id]))][1]
            sentence = next((s for s in _sentences(passage) if any(one in s for one in question.answers)), None)
            other, third = rng.sample([text for text in texts if text != passage], 2)
            if sentence is None:
                continue
            for kind, answer in (
                ("right", f"{sentence} [1]"), ("wrong citation", f"{sentence} [2]"), ("reference", question.answers[0]),
                ("another's", f"{rng.choice(_sentences(third))} [1]"),
            ):  # fmt: skip
                started = time.process_time()
                figures = grade(question, Shown(answer, (passage, other)))
                times.append(1000 * (time.process_time() - started))
                rows[kind].append(Row(question.id, language(question), figures, 0.0, 0, 0))
        for kind, of in rows.items():
            means = summary(of)
            told[f"{folder.name}/{kind}"] = {name: round(means[name]["mean"], 3) for name in FIGURES if name in means}
            print(f"{folder.name:12} {kind:15} {len(of):5}", told[f"{folder.name}/{kind}"])
    print(json.dumps({**told, "ms": round(sum(times) / len(times), 2)}))


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split(text)]


if __name__ == "__main__":
    main()
