"""`ekiben guard`: try a policy on a text, judge the guards on labelled rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import Bar, BundleOption, JsonOption, err, fail, load, out
from services.settings import load_settings

if TYPE_CHECKING:
    from guards.detectors import Detectors
    from guards.names import Names, OnnxNames
    from guards.pii import Span
    from guards.score import Finder, Row
    from services.bundle import LoadedBundle

app = typer.Typer(help="Guards: try a policy on a text, judge the guards on labelled rows.", no_args_is_help=True)


@app.command("scan")
def guard_scan(
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file instead.")] = None,
    policy: Annotated[str, typer.Option("--policy", "-p", help="Name of the policy in bundle.yaml.")] = "default",
    stage: Annotated[str, typer.Option("--stage", "-s", help="input, passages or output: what the text is.")] = "input",
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Show what a policy does to a text: what its checks find, and what would go on. Exits with 2 when the text is refused.

    A model's verdicts (`judge`) are not asked for, and answers are not held against passages.
    """
    from guards.guard import Blocked, Guard, GuardFailure
    from guards.output import OutputGuard

    loaded = load(bundle)
    if policy not in loaded.policies:
        fail(f"no policy named {policy!r}; there is: {', '.join(loaded.policies)}")
    if stage not in {"input", "passages", "output"}:
        fail(f"no stage named {stage!r}; there is: input, passages, output")
    content = _content(text, file)
    active = Guard(loaded.policies[policy], _detectors(loaded))
    shown: str | None = None
    try:
        if stage == "input":
            shown = active.check_text(content)
        elif stage == "passages":
            shown = active.review_passage(content)
        else:
            answer = OutputGuard(active)
            said = answer.feed(content) + answer.finish()
            shown = said if answer.blocked is None else None
    except Blocked:
        pass
    except GuardFailure as error:
        fail(str(error))
    findings = [finding.as_dict() for finding in active.findings]
    if as_json:
        result = {"policy": active.policy.label, "refused": shown is None, "text": shown or "", "findings": findings}
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    else:
        for finding in findings:
            kind = f"{finding['action']} (shadow)" if finding.get("shadow") else finding["action"]
            out.print(f"{kind:>11}  {finding['detector']}  {finding['detail']} x{finding['count']}", markup=False)
        out.print("refused" if shown is None else shown, markup=False)
    if shown is None:
        raise typer.Exit(2)


def _content(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        fail("give a text, - for standard input, or --file PATH: one of them")
    if file is None:
        return sys.stdin.read() if text == "-" else str(text)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {file}: {error}")


def _detectors(loaded: LoadedBundle) -> Detectors:
    """Return detectors in this process; the model for names is opened when a text needs it."""
    from guards.detectors import Detectors
    from guards.names import open_names

    if loaded.bundle.names is None:
        return Detectors()
    opened: list[Names | OnnxNames] = []

    def names(text: str) -> list[Span]:
        if not opened:
            folder = _packed_names()
            if folder is None:
                fail("the model for names is not packed; run `ekiben pack`")
            opened.append(open_names(folder))
        return opened[0].find(text)

    return Detectors(names=names)


def _packed_names() -> Path | None:
    """Return the folder of the packed model for names, None where nothing is packed."""
    from services.lock import LockError, read_lock
    from services.store import is_stored, stored_path

    try:
        tag = read_lock(load_settings().lock).names
    except LockError:
        return None
    return stored_path(tag) if tag is not None and is_stored(tag) else None


@app.command("eval")
def guard_eval(
    file: Annotated[Path, typer.Argument(help='JSON lines: "text" with "label" (1 attack, 0 harmless), or with "spans".')],
    ner: Annotated[
        Path | None, typer.Option("--ner", help="Folder of a model that finds names, instead of the one that is packed.")
    ] = None,
    names: Annotated[bool, typer.Option("--names/--no-names", help="Look for names in rows with spans.")] = True,  # noqa: FBT002
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
            folder = (ner or _packed_names()) if names else None
            find = _with_names(folder) if folder else find_patterns
            if names and folder is None:
                err.print("the model for names is not packed (`ekiben pack` does that): names are not looked for")
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
    from guards.names import open_names
    from guards.score import find_patterns

    names = open_names(folder)

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
