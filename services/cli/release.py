"""`ekiben release`: from this folder to where it serves, and back to an earlier version."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from services.cli.console import Bar, JsonOption, agreed, err, fail, out, reported
from services.settings import load_settings

if TYPE_CHECKING:
    from services.journal import Journal, Released
    from services.release import Planned, Walk, Walked
    from services.shipping import Images, Options

app = typer.Typer()
Target = Literal["plain", "keda", "knative", "kserve", "compose", "bentocloud"]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
To = Annotated[
    str, typer.Option("--to", metavar="PLACE", help="Where the image is pushed: REGISTRY/NAME, or oci:FOLDER (default: nowhere).")
]
Env = Annotated[
    Path | None, typer.Option("--env", "-e", help="The environment file to render for (default: nothing is rendered).")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of what is rendered.")]


@app.callback(invoke_without_command=True)
def release(  # noqa: PLR0913  a release has many settings
    context: typer.Context,
    to: To = "",
    plain_http: Annotated[bool, typer.Option("--plain-http", help="The registry has no TLS: one for trials.")] = False,  # noqa: FBT002
    env: Env = None,
    target: Annotated[Target, typer.Option("--target", "-t", help="What it is rendered for.")] = "plain",
    output: Output = Path("rendered"),
    backend: Annotated[Literal["podman", "buildah", "docker"], typer.Option(help="What makes the image.")] = "podman",
    weights: Annotated[Literal["image", "apart"], typer.Option(help="In the image, or in one of their own.")] = "image",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What the image's engine will run on.")] = "cpu",
    base: Annotated[str, typer.Option("--base-image", metavar="IMAGE", help="As `ekiben containerize` takes it.")] = "",
    builder: Annotated[str, typer.Option("--build-image", metavar="IMAGE", help="As `ekiben containerize` takes it.")] = "",
    wheels: Annotated[Path | None, typer.Option(metavar="FOLDER", help="As `ekiben containerize` takes it.")] = None,
    opt: Annotated[list[str] | None, typer.Option(metavar="KEY[=VALUE]", help="An option for the backend.")] = None,
    require_scan: Annotated[bool, typer.Option("--require-scan", help="Fail where something could not be scanned.")] = False,  # noqa: FBT002  typer's way
    plan: Annotated[  # noqa: FBT002  typer's way
        bool, typer.Option("--plan", help="Print what would be done, and do nothing; 1 where it could not be.")
    ] = False,
    yes: YesOption = False,  # noqa: FBT002
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Release what this folder makes: build, verify, scan, containerize, push, render. The plan is shown first.

    A step whose result is there, of the same inputs, is not done again; so a release that was interrupted goes on where it was.
    Secrets are looked for in every file, vulnerabilities by pip-audit and the Dockerfile by hadolint where they are installed.
    skopeo pushes; it asks for nobody's password: `skopeo login` first. Nothing is applied to a cluster.
    """
    if context.invoked_subcommand is not None:
        return
    from services.bento import tag_here
    from services.release import Walk
    from services.scan import absent
    from services.shipping import Options, Shipping, schema_here

    with reported():
        options = Options(
            to=to, plain_http="yes" if plain_http else "", env=_absolute(env), target=target, output=_absolute(output),
            backend=backend, weights=weights, device=device, base=base, builder=builder, wheels=_absolute(wheels),
            opt="\n".join(opt or ()),
        )  # fmt: skip
        tag, journal = tag_here(), _journal()
        shipping = Shipping(tag, options, _images(options), require_scan=require_scan)
        walk = Walk(tag, shipping.steps(), journal)
        _show(f"release {tag}", walk.plan(), result=plan, as_json=as_json and plan)
        for line in absent() if plan else ():
            err.print(f"NOT SCANNED: {line}", markup=False)
        if lacking := shipping.lacking():
            fail("\n".join(lacking))
        if plan:
            return
        if not agreed(f"release {tag}?", yes=yes):
            fail("nothing was done")
        _walk(walk, journal, tag, options, schema_here(), kind="release", as_json=as_json)


@app.command("list")
def release_list(as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List the releases from here and the rollbacks, the newest last; it is the one that stands."""
    with reported():
        releases = _journal().releases()
    if as_json:
        sys.stdout.write(json.dumps([one.model_dump(by_alias=True) for one in releases]) + "\n")
        return
    if not releases:
        err.print("nothing was released from here yet", markup=False)
        return
    table = Table("when", "what", "bento", "schema", "image", box=None, pad_edge=False)
    for one in releases:
        table.add_row(one.at, one.kind, one.bento, one.schema_, one.results.get("reference") or one.results.get("image") or "-")
    out.print(table)


@app.command("rollback")
def release_rollback(
    tag: Annotated[str | None, typer.Argument(help="A tag or version, or its beginning (default: the one before).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,  # noqa: FBT002
    env: Env = None,
    yes: YesOption = False,  # noqa: FBT002
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Go back to an earlier release: its image is looked for, or made and pushed again, with the options of then.

    What differs is said first. Manifests are rendered anew, of that version's bundle and of the environment file as it is now;
    --env names another one. The database is left as it is: where the earlier version cannot use its schema, that is said with
    the command for it, and nothing is done.
    """
    from services.release import Walk, earlier
    from services.shipping import Options, Shipping, differences, schema_trouble

    with reported():
        journal = _journal()
        stands, target = earlier(journal.releases(), tag)
        told = {"env": _absolute(env), "output": target.options.get("output") or _absolute(Path("rendered"))} if env else {}
        options = Options.of(target.options, **told)
        changes, schema = differences(stands, target), _schema() or stands.schema_
        trouble = schema_trouble(schema, target)
        walk = Walk(target.bento, Shipping(target.bento, options, _images(options)).steps_back(target), journal)
        _show(
            f"roll back from {stands.bento} to {target.bento}",
            walk.plan(),
            changes,
            schema,
            result=dry_run,
            as_json=as_json and dry_run,
        )
        if trouble:
            fail(trouble)
        if dry_run:
            return
        if not agreed(f"roll back to {target.bento}?", yes=yes):
            fail("nothing was done")
        _walk(walk, journal, target.bento, options, target.schema_, kind="rollback", as_json=as_json)


def _walk(
    walk: Walk, journal: Journal, tag: str, options: Options, schema: str, *, kind: Literal["release", "rollback"], as_json: bool
) -> None:
    from services.journal import Released

    steps: list[Walked] = []

    def told(step: Walked) -> None:
        steps.append(step)
        how = "was there" if step.skipped else f"{step.seconds:.1f} s"
        err.print(f"  {step.name:<14}{how}", markup=False)

    try:
        with journal.held(), Bar() as bar:
            results = walk.run(bar, told)
            done = Released(bento=tag, kind=kind, schema=schema, options=options.kept(), results=results)
            journal.append(done)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here")
    _told(done, steps, as_json=as_json)


def _told(done: Released, steps: list[Walked], *, as_json: bool) -> None:
    if as_json:
        told = done.model_dump(by_alias=True) | {"steps": [step._asdict() for step in steps]}
        sys.stdout.write(json.dumps(told) + "\n")
        return
    where = done.results.get("reference") or done.results["image"]
    out.print(f"{done.bento}: {where}", markup=False)
    if files := done.results.get("files"):
        out.print(f"rendered into {files}; apply it when the plan of the database agrees: `ekiben database status`", markup=False)


def _show(
    title: str,
    planned: list[Planned],
    changes: list[str] | None = None,
    schema: str | None = None,
    *,
    result: bool,
    as_json: bool,
) -> None:
    if as_json:
        told: dict[str, Any] = {"plan": [step._asdict() for step in planned]}
        if changes is not None:
            told |= {"changes": changes, "schema": schema}
        sys.stdout.write(json.dumps(told) + "\n")
        return
    # What was asked for is a result; before a question it is a remark.
    where = out if result else err
    where.print(title, markup=False)
    for line in changes or ():
        where.print(f"  {line}", markup=False)
    if schema:
        where.print(f"  the database's schema stays {schema}", markup=False)
    for step in planned:
        where.print(f"  {step.name:<14}{step.about}{'' if step.runs else ': is there'}", markup=False)


def _journal() -> Journal:
    from services.journal import Journal
    from services.lock import read_lock

    settings = load_settings()
    return Journal(settings.state_dir / read_lock(settings.lock).name / "releases.jsonl")


def _images(options: Options) -> Images:
    from services.imaging import Engine

    return Engine(options)


def _schema() -> str | None:
    """Return the schema of the database that EKIBEN_DATABASE_URL names; None where it names none or is empty."""
    if load_settings().database_url is None:
        return None
    from accounts.database import DatabaseUnavailable, connected, on_schema

    async def current() -> str | None:
        async with connected(load_settings().database) as engine:
            return await on_schema(engine, lambda schema: schema.current.id if schema.current else None)

    try:
        return asyncio.run(current())
    except DatabaseUnavailable as error:
        fail(f"{error}; whether an earlier version can use it is not known")
    except ValueError as error:
        fail(f"EKIBEN_DATABASE_URL: {error}")


def _absolute(path: Path | None) -> str:
    return str(path.resolve()) if path else ""
