"""`ekiben rag answers`: a served route is asked the questions of a file, and its answers are measured."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from services.cli.console import Bar, JsonOption, Pace, err, fail, reported

if TYPE_CHECKING:
    from rag.answers import Bound
    from rag.judgements import Question
    from services.answering import Asked

app = typer.Typer()


@app.command("answers")
def rag_answers(  # noqa: PLR0913  an evaluation has many settings
    questions: Annotated[
        Path, typer.Option(help="Questions, a line each: {_id, text, answers, answerable, sources}; .jsonl or .jsonl.gz.")
    ],
    model: Annotated[str, typer.Option(help="The route that is asked.")],
    url: Annotated[str, typer.Option(help="The box that serves, as OpenAI's client is given it.")] = "http://localhost:3000/v1",
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many, evenly spread over the file.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions that are asked at a time.")] = 4,
    header: Annotated[
        list[str] | None,
        typer.Option(help="'NAME: VALUE' with every request, or @FILE with such lines, for keys. May be repeated."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Keep every answer here, with its texts, as soon as it is there.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the file of --save.")] = False,  # noqa: FBT002
    compare: Annotated[
        Path | None, typer.Option(help="An earlier result, of --json or --save: how far this run is ahead of it.")
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", help="Exit with 1 unless these are reached: contains=0.5,zh.groundedness=0.9. May be repeated."),
    ] = None,
    most: Annotated[
        list[str] | None, typer.Option("--max", help="Exit with 1 where these are exceeded: false_abstention=0.1.")
    ] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Ask a served route every question of a file, and measure its answers, by language and in all.

    Exact match, token F1 and `contains` against the reference answers; groundedness in the passages that were shown; citation
    precision and recall; recall of the documents that a question names; how often the route abstains where nothing answers
    ("answerable": false) and where something does; tokens and latency. Each with its 95% bootstrap interval.

    Without --save nothing is kept but figures. A run that was ended goes on by --save FILE --resume. Exits with 1 when a
    question failed or a bound was missed.
    """
    from rag.answers import differences, summary
    from rag.judgements import read_questions
    from services.results import Kept, read_result

    bounds = _bounds(least or [], most=False) + _bounds(most or [], most=True)
    if resume and save is None:
        fail("--resume needs --save FILE, which it goes on with")
    headers = _headers(header or [])
    with reported():
        asked_of = read_questions(questions)
        before = read_result(compare) if compare else None
        keeping = Kept(save, model, asked_of, resume=resume) if save else nullcontext()
        count = min(limit or len(asked_of), len(asked_of))
        chosen = [asked_of[number * len(asked_of) // count] for number in range(count)]
        with keeping as kept, Bar() as bar:
            bar.step(f"asking {model}")
            asked = _asked(url, headers, model, chosen, concurrency, kept, bar)
    told: dict[str, Any] = {"model": model, "url": url, "file": questions.name, **summary(asked.rows), "failed": asked.failed}
    if before is not None:
        told["comparisons"] = differences(asked.rows, before)
    told["missed"] = [missed for bound in bounds if (missed := bound.missed(told)) is not None]
    _show(told)
    if as_json:
        rows = [asdict(row) for row in asked.rows]
        sys.stdout.write(json.dumps({**told, "rows": rows}, ensure_ascii=False) + "\n")
    if asked.failed:
        fail(f"{len(asked.failed)} of {len(chosen)} questions failed; the first: {next(iter(asked.failed.values()))}")
    if told["missed"]:
        fail("; ".join(told["missed"]))


def _asked(
    url: str, headers: Mapping[str, str], model: str, questions: Sequence[Question], concurrency: int, kept: Any, bar: Bar
) -> Asked:
    from services.answering import AnsweringError, Box, ask_all

    pace = Pace(bar)

    async def ask() -> Asked:
        async with Box(url, headers) as box:
            return await ask_all(
                box, model, questions, concurrency=concurrency, kept=kept,
                progress=lambda done, total: pace.tell("answers", done, total),
            )  # fmt: skip

    try:
        return asyncio.run(ask())
    except AnsweringError as error:
        fail(f"{error}" + ("; what was answered is in the file of --save: go on by --resume" if kept else ""))


def _bounds(texts: Sequence[str], *, most: bool) -> list[Bound]:
    from rag.answers import Bound

    try:
        return [Bound.parse(one, most=most) for text in texts for one in text.split(",")]
    except ValueError as error:
        fail(str(error))


def _headers(given: Sequence[str]) -> dict[str, str]:
    lines: list[str] = []
    for text in given:
        try:
            lines += Path(text[1:]).read_text(encoding="utf-8").splitlines() if text.startswith("@") else [text]
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read {text[1:]}: {error}")
    headers: dict[str, str] = {}
    for line in filter(str.strip, lines):
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            fail("--header is 'NAME: VALUE', or @FILE with such lines")
        headers[name.strip()] = value.strip()
    return headers


def _show(told: Mapping[str, Any]) -> None:
    from rag.answers import FIGURES

    table = Table("figure", "language", "n", "mean", "95% from", "to", box=None, pad_edge=False)
    languages = told["by_language"]
    parts = [("all", told), *(languages.items() if len(languages) > 1 else ())]
    for figure in FIGURES:
        for language, of in parts:
            if one := of.get(figure):
                values = (f"{one[key]:.3f}" for key in ("mean", "low", "high"))
                table.add_row(figure, language, str(one["n"]), *values)
    err.print(table)
    tokens, latency = told["tokens"], told["latency_ms"]
    if latency:
        err.print(
            f"{told['questions']} answers; a question: {tokens['prompt']['mean']:.0f} tokens in, "
            f"{tokens['completion']['mean']:.0f} out; p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms",
            markup=False,
        )
    for name, what in (("refused", "refused by a guard"), ("excerpts_only", "held against excerpts, not whole passages")):
        if told[name]:
            err.print(f"{told[name]} {what}", markup=False)
    for figure, one in told.get("comparisons", {}).items():
        err.print(
            f"{figure}: {one['mean']:+.3f} over {one['n']}, 95% from {one['low']:+.3f} to {one['high']:+.3f}, p = {one['p']:.4f}",
            markup=False,
        )
