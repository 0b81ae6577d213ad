"""`ekiben route`: how complex a question is, and how well that divides questions between two models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.console import JsonOption, err, fail, out

app = typer.Typer(help="Routing: the estimator of complexity, tried and measured.", no_args_is_help=True)
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="A file of weights of your own (default: the shipped one).")
]


@app.command("score")
def route_score(
    text: Annotated[str, typer.Argument(help="The question; - reads standard input.")],
    weights: WeightsOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Print how complex a question is, from 0 to 1: the share of the questions trained on that gain less by a stronger model.

    It is what the thresholds of a route by complexity are compared with.
    """
    from targets.complexity import SHIPPED, ComplexityError, load_complexity

    try:
        estimator = load_complexity(weights or SHIPPED)
    except ComplexityError as error:
        fail(str(error))
    content = sys.stdin.read() if text == "-" else text
    found = {"score": round(estimator.score(content), 4), "gain": round(estimator.raw(content), 4)}
    out.print(json.dumps(found) if as_json else f"{found['score']:.4f}", markup=False)


@app.command("eval")
def route_eval(
    file: Annotated[
        Path, typer.Argument(help='JSON lines, also .gz: "prompt", "weak_ok", "strong_ok" (true or false), perhaps "dataset".')
    ],
    weights: WeightsOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Judge the estimator on questions that a weak and a strong model answered, by dataset; figures are RouteLLM's.

    APGR is the mean part of the gap between the models that is recovered over all shares of strong calls (0.5 at random), CPT50
    and CPT80 the shares that recover half and four fifths of it, threshold50 and threshold80 the scores that give those shares.
    Rows that the estimator was trained on are left out, and counted.
    """
    from targets.complexity import SHIPPED, ComplexityError, load_complexity
    from targets.evaluate import EvaluationError, evaluate, read_questions

    try:
        estimator = load_complexity(weights or SHIPPED)
        result = evaluate(read_questions(file), estimator.score, estimator.knows)
    except (ComplexityError, EvaluationError) as error:
        fail(str(error))
    if as_json:
        out.print(json.dumps(result, ensure_ascii=False), markup=False)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    columns = ("n", "weak", "strong", "apgr", "apgr_of_length", "cpt50", "cpt80", "threshold50", "threshold80")
    heads = ("n", "weak", "strong", "APGR", "of length", "CPT50", "CPT80", "score50", "score80")
    table = Table("source", *heads, box=None, pad_edge=False)
    for name, row in {"all": result["all"], **result["by_source"]}.items():
        table.add_row(name or "-", *("-" if row[column] is None else str(row[column]) for column in columns))
    out.print(table)
    out.print(f"CPU ms a question: {result['cpu_ms']}", markup=False)
    if result["left_out"]:
        err.print(f"{result['left_out']} rows were trained on and left out", markup=False)
