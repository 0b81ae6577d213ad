"""`ekiben audit`: the audit trail: verified, read, exported, pruned."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from services.cli.console import BundleOption, JsonOption, csv_cell, err, fail, load, out
from services.settings import load_settings

FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="The trail's folder (default: that of the bundle, EKIBEN_STATE_DIR/BUNDLE/audit).")
]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Of this tenant only.")]
RouteOption = Annotated[str | None, typer.Option("--route", help="Of this route only.")]
OutcomeOption = Annotated[
    Literal["ok", "refused", "error", "cancelled"] | None, typer.Option("--outcome", help="That ended so only.")
]
COLUMNS = (
    "at", "id", "action", "tenant", "key", "route", "outcome", "prompt_tokens", "cached_tokens", "completion_tokens", "micros",
    "seconds", "first_token_seconds", "versions", "verdicts", "more",
)  # fmt: skip
SHOWN = 50
_OFF = "bundle.yaml does not say `audit: {enabled: true}`"
app = typer.Typer(help="The audit trail: verify it, read it, export it, prune it.", no_args_is_help=True)


@app.command("verify")
def audit_verify(
    against: Annotated[
        Path | None,
        typer.Option("--against", help="What --json printed earlier: the trail must still hold all that it held then."),
    ] = None,
    folder: FolderOption = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Look at every line of the trail, and say where it was altered, removed or inserted; then end with 1.

    A torn line, half of which was written when the process or the machine stopped, is told and is no failure. Seals are checked
    with EKIBEN_AUDIT_KEY; without it, what was sealed with a key cannot be verified. Keep what --json prints elsewhere, and give
    it to --against later: so even a trail that was put back to an earlier state is found out.
    """
    from accounts.chain import Point
    from accounts.verify import verify

    where = _folder(folder, bundle)
    anchors: dict[str, Point] = {}
    if against is not None:
        try:
            told = json.loads(against.read_text(encoding="utf-8"))["chains"]
            anchors = {name: Point(int(one["n"]), str(one["hash"])) for name, one in told.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            fail(f"{against} is not what `ekiben audit verify --json` prints ({type(error).__name__})")
    try:
        found = verify(where, _key(), anchors)
    except OSError as error:
        fail(f"the trail cannot be read: {error}; where it was being pruned, try again")
    if as_json:
        report = {
            "ok": found.ok, "folder": str(where), "files": found.files, "lines": found.lines, "requests": found.requests,
            "chains": {name: {"n": one.head.n, "hash": one.head.hash} for name, one in found.chains.items()},
            "problems": [
                {"what": one.what, "file": one.file, "line": one.line, "message": one.message} for one in found.problems
            ],
        }  # fmt: skip
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for one in found.problems[:SHOWN]:
            colour = "red" if one.tampering else "yellow"
            err.print(f"{one.file}:{one.line}: {one.what}: {one.message}", markup=False, style=colour)
        if len(found.problems) > SHOWN:
            err.print(f"and {len(found.problems) - SHOWN} more", markup=False)
        sealed = "sealed with a key" if _key() else "hashed without a key: who can write the folder can forge it"
        told = f"{found.files} files of {len(found.chains)} processes, {found.lines} lines, {found.requests} requests; {sealed}"
        out.print(told, markup=False)
        out.print("[green]ok[/green]" if found.ok else "[red]broken[/red]")
    if not found.ok:
        raise typer.Exit(1)


@app.command("tail")
def audit_tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many.")] = 10,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Then print those that come.")] = False,  # noqa: FBT002
    tenant: TenantOption = None,
    route: RouteOption = None,
    outcome: OutcomeOption = None,
    folder: FolderOption = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Print the last requests of all processes, a line each."""
    from accounts.reading import Filter, follow, last

    where, wanted = _folder(folder, bundle), Filter(tenant, route, outcome)
    told = json.dumps if as_json else _readable
    for line in last(where, lines, wanted):
        sys.stdout.write(told(line) + "\n")
    sys.stdout.flush()
    if following:
        try:
            for line in follow(where, wanted):
                sys.stdout.write(told(line) + "\n")
                sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


@app.command("export")
def audit_export(  # noqa: PLR0913
    form: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="JSON a line, or CSV.")] = "jsonl",
    since: Annotated[str | None, typer.Option(help="From this date or time on, of UTC: 2026-01-31 or 2026-01-31T12:00.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this date or time, without it.")] = None,
    tenant: TenantOption = None,
    route: RouteOption = None,
    outcome: OutcomeOption = None,
    texts: Annotated[bool, typer.Option("--texts", help="Decrypt texts, with EKIBEN_AUDIT_TEXT_KEY; JSONL only.")] = False,  # noqa: FBT002
    folder: FolderOption = None,
    bundle: BundleOption = None,
) -> None:
    """Write requests to standard output, by time. What is exported is not verified: `ekiben audit verify` does that."""
    from accounts.reading import Filter, moment, read

    where = _folder(folder, bundle)
    try:
        wanted = Filter(tenant, route, outcome, since and moment(since), until and moment(until))
    except ValueError as error:
        fail(f"--since and --until are dates or times as in ISO 8601: {error}")
    found = read(where, wanted)
    if form == "csv":
        if texts:
            fail("--texts goes with --format jsonl")
        return _write_csv(found)
    key = _text_key() if texts else None
    for line in found:
        if key is not None and "sealed" in line:
            try:
                line["texts"] = key.decrypt(line.pop("sealed"), line["id"])
            except ValueError as error:
                fail(f"{line['id']}: {error}")
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    return None


@app.command("prune")
def audit_prune(
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Keep what was written in so many days (default: audit.retention_days of the bundle)."),
    ] = None,
    folder: FolderOption = None,
    bundle: BundleOption = None,
) -> None:
    """Remove the files of the trail that are older; a sealed note says up to where, and the rest still verifies.

    Chains that are broken are left alone, as evidence, and then the command ends with 1.
    """
    from accounts.retention import prune

    kept = days or load(bundle, folders=False).bundle.audit.retention_days
    if kept is None:
        fail("how long is the trail kept? Give --days, or write audit.retention_days into bundle.yaml")
    where = _folder(folder, bundle)
    try:
        done = prune(where, _key(), kept)
    except (OSError, ValueError) as error:
        fail(str(error))
    for name, why in done.kept.items():
        err.print(f"left alone: {name}: {why}", markup=False, style="red")
    out.print(f"removed {sum(name.endswith('.jsonl') for name in done.files)} files of {where}", markup=False)
    if done.kept:
        raise typer.Exit(1)


def _folder(folder: Path | None, bundle: Path | None) -> Path:
    where = _named(folder, bundle)
    try:
        next(where.iterdir(), None)  # glob keeps silent about what may not be read
    except OSError as error:
        fail(f"the trail cannot be read: {error}")
    return where


def _named(folder: Path | None, bundle: Path | None) -> Path:
    if folder is not None:
        if not folder.is_dir():
            fail(f"there is no folder {folder}")
        return folder
    content = load(bundle, folders=False).bundle
    where = load_settings().audit(content.name)
    if not where.is_dir():
        why = "nothing was served yet, or EKIBEN_STATE_DIR is another"
        fail(f"there is no audit trail at {where}: {why if content.audit.enabled else _OFF}")
    return where


def _key() -> bytes | None:
    from accounts.chain import derived

    secret = load_settings().audit_key
    return derived(secret.get_secret_value(), "chain") if secret else None


def _text_key() -> Any:
    from accounts.audit import TextKey
    from accounts.chain import derived

    secret = load_settings().audit_text_key
    if secret is None:
        fail("--texts needs EKIBEN_AUDIT_TEXT_KEY, as it was when the texts were written")
    return TextKey(derived(secret.get_secret_value(), "texts"))


def _readable(line: dict[str, Any]) -> str:
    tokens = f"{line.get('prompt_tokens', 0)}+{line.get('completion_tokens', 0)} tokens"
    verdicts = ", ".join(f"{one.get('detector')}:{one.get('action')}" for one in line.get("verdicts", ()))
    who = line["tenant"] + (f"/ek_{line['key'].removeprefix('ek_')}" if line.get("key") else "")
    told = f"{line['at']} {line['outcome']:<9} {line.get('route', '-')} {who} {tokens} {line.get('micros', 0) / 1e6:.6f}"
    told += f" {line.get('seconds', 0):.3f}s {line['id']}" + (f" [{verdicts}]" if verdicts else "")
    # What a caller wrote must not move the terminal's cursor.
    return "".join(character if character.isprintable() else "?" for character in told)


def _write_csv(found: Iterable[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(COLUMNS)
    for line in found:
        values = (line.get(name, "") for name in COLUMNS)
        writer.writerow(
            csv_cell(json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value) for value in values
        )
