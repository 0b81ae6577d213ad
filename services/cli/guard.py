"""`ekiben guard`: try a policy on a text, judge the guards on labelled rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import Bar, BundleOption, JsonOption, fail, load, out

if TYPE_CHECKING:
    from guards.pii import Span
    from guards.score import Finder, Row

app = typer.Typer(help="Guards: try a policy on a text, judge the guards on labelled rows.", no_args_is_help=True)


@app.command("scan")
def guard_scan(
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="Name of the policy in bundle.yaml.")] = "default",
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Show what a policy does to a user's text. Exits with 2 when the text is refused."""
    from guards.guard import Blocked, Guard

    loaded = load(bundle)
    if policy not in loaded.policies:
        fail(f"no policy named {policy!r}; there is: {', '.join(loaded.policies)}")
    content = sys.stdin.read() if text == "-" else text
    active = Guard(loaded.policies[policy])
    try:
        shown, refused = active.check_text(content), False
    except Blocked:
        shown, refused = "", True
    findings = [finding.as_dict() for finding in active.findings]
    if as_json:
        result = {"policy": active.policy.label, "refused": refused, "text": shown, "findings": findings}
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    else:
        for finding in findings:
            out.print(f"{finding['action']:>5}  {finding['detector']}  {finding['detail']} x{finding['count']}", markup=False)
        out.print("refused" if refused else shown, markup=False)
    if refused:
        raise typer.Exit(2)


@app.command("eval")
def guard_eval(
    file: Annotated[Path, typer.Argument(help='JSON lines: "text" with "label" (1 attack, 0 harmless), or with "spans".')],
    ner: Annotated[Path | None, typer.Option("--ner", help="Folder of a model that finds names, for rows with spans.")] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Judge the guards on labelled rows: injection by recall and false alarms, personal data by type."""
    from guards.score import EvaluationError, find_patterns, read_rows, score_injection, score_pii

    try:
        rows = read_rows(file)
    except EvaluationError as error:
        fail(str(error))
    labelled, marked = ([row for row in rows if row.label is not None], [row for row in rows if row.spans is not None])
    results: list[dict[str, Any]] = []
    with Bar() as bar:
        if labelled:
            results.append(score_injection(_told(bar, "injection", labelled)))
        if marked:
            find = find_patterns if ner is None else _with_names(ner)
            results.append(score_pii(_told(bar, "personal data", marked), find))
    for result in results:
        if as_json:
            sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        else:
            _show(result)


def _told(bar: Bar, what: str, rows: Sequence[Row]) -> Iterator[Row]:
    bar.step(what)
    for done, row in enumerate(rows, 1):
        yield row
        bar.tell(f"{what}: {done} of {len(rows)}", done, len(rows))


def _with_names(folder: Path) -> Finder:
    """Return a finder of patterns and names; a name gives way to a pattern that it overlaps."""
    from guards.names import Names  # pyright: ignore[reportMissingImports]  not in every build

    from guards.score import find_patterns

    names = Names(folder)

    def find(text: str) -> list[Span]:
        certain = find_patterns(text)
        free = [n for n in names.find(text) if all(n.end <= c.start or n.start >= c.end for c in certain)]
        return sorted([*certain, *free], key=lambda span: span.start)

    return find


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    spans = "by_type" in result
    columns = ("n", "recall", "precision") if spans else ("n", "block recall", "block fpr", "flag recall", "flag fpr")
    table = Table("type" if spans else "language", *columns)
    if spans:
        for name, row in result["by_type"].items():
            table.add_row(name, *(_number(row[column]) for column in columns))
    else:
        for name, row in {"all": result, **result["by_lang"]}.items():
            rates = [row[threshold][rate] for threshold in ("block", "flag") for rate in ("recall", "fpr")]
            table.add_row(name, str(row["n"]), *map(_number, rates))
    out.print(table)
    if spans:
        return
    kinds = Table("kind", "n", "blocked", "flagged")
    for name, row in result["by_kind"].items():
        kinds.add_row(name or "-", str(row["n"]), _number(row["block"]), _number(row["flag"]))
    out.print(kinds)
    out.print(f"CPU ms a text: p50 {result['cpu_ms']['p50']}, p95 {result['cpu_ms']['p95']}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
