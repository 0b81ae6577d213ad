"""`ekiben deploy`: what stands around the box where it is served."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.table import Table

from services.bundle import BundleError
from services.cli.console import Bar, BundleOption, JsonOption, err, fail, load, out, reported
from services.settings import ROOT, load_settings
from services.settings import environment as variable

if TYPE_CHECKING:
    from deploy.box import Box
    from deploy.measured import Measured
    from deploy.rendering import Rendering

app = typer.Typer(help="Manifests for clusters, compose and BentoCloud; units for systemd.", no_args_is_help=True)

EnvOption = Annotated[Path, typer.Option("--env", "-e", help="The environment file: image, replicas, nodes, names of secrets.")]
FolderOption = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to (default: print).")]
ForceOption = Annotated[bool, typer.Option("--force", help="Write over files that another made.")]
Cluster = Literal["knative", "keda", "kserve", "plain"]


@app.command()
def render(
    env: EnvOption,
    target: Annotated[
        Literal["knative", "keda", "kserve", "plain", "compose", "bentocloud"],
        typer.Option("--target", "-t", help="What runs it."),
    ],
    output: FolderOption = None,
    bundle: BundleOption = None,
    *,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Render the packed bundle for a target, for `kubectl apply -f DIR`.

    plain: Deployments and the activator. keda: KEDA with its HTTP add-on. knative and kserve: a service that they scale.
    compose: one machine with Redis, PostgreSQL, Qdrant and Prometheus. bentocloud: the file of `bentoml deploy -f`.

    The gateway stays up; the engine sleeps where engine.replicas.min is 0. No secret's value is written, only names of Secrets.
    What must be there before, such as the Secrets, and how the first API key is made, is told after it.
    A bundle that does not fit (a GPU recipe without GPUs, too little memory, no scaler) is refused, and nothing is written.
    """
    from deploy.environment import BadEnvironment, read_environment
    from deploy.fitting import DoesNotFit
    from deploy.rendering import render as rendered

    try:
        made = rendered(_box(bundle), read_environment(env), target)
    except (BadEnvironment, DoesNotFit) as error:
        _refuse(error.lines)
    _told(made, output, target=target, as_json=as_json, force=force)


@app.command()
def helm(
    env: EnvOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the chart.")],
    target: Annotated[Cluster, typer.Option("--target", "-t", help="What scales it.")] = "plain",
    bundle: BundleOption = None,
    *,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a Helm chart whose values are fields of the environment file.

    The chart has the environment's shape: sizes, numbers, places, images and names of secrets are values; what would add or
    take away objects (another target, monitoring, another source of weights) is another chart, and refused as a value.
    """
    from deploy.environment import BadEnvironment, read_environment
    from deploy.fitting import DoesNotFit
    from deploy.helm import chart

    try:
        made = chart(_box(bundle), read_environment(env), target)
    except (BadEnvironment, DoesNotFit) as error:
        _refuse(error.lines)
    _told(made, output, target=target, as_json=as_json, force=force)


@app.command()
def systemd(  # noqa: PLR0913  options of a command
    output: FolderOption = None,
    by: Annotated[Literal["activator", "socket"], typer.Option(help="What starts the box: docs/scale-to-zero.md.")] = "activator",
    name: Annotated[str, typer.Option(help="Of the units.")] = "ekiben",
    listen: Annotated[str, typer.Option(help="Where callers ask.", metavar="HOST:PORT")] = "127.0.0.1:3000",
    address: Annotated[str, typer.Option(help="Where the box listens behind it.", metavar="HOST:PORT")] = "127.0.0.1:3001",
    idle_seconds: Annotated[int, typer.Option(min=1, help="Stopped after so long without a request.")] = 300,
    environment_file: Annotated[
        Path | None, typer.Option(help="File with the box's secrets, NAME=VALUE a line, readable by root alone.")
    ] = None,
    *,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="Whether the box may see devices (default: if this machine has a GPU).")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write units for systemd: this installation's box on one machine, started when it is asked, stopped when it is idle.

    Copy them to /etc/systemd/system, bring the model store's `models` to /var/lib/NAME/bentoml, run `systemctl daemon-reload`,
    and enable NAME.service, or NAME.socket with --by socket. The unit's user must be able to read the project and its Python:
    what is below /tmp, or in a home that nobody else may enter, is refused.
    """
    from deploy import sight
    from deploy.rendering import MARK, Rendering
    from deploy.systemd import BadUnit, SystemdBox, units
    from services.target import find_device

    host, _, port = address.rpartition(":")
    bentoml = str(Path(sys.executable).with_name("bentoml"))
    if environment_file:
        environment_file = environment_file.absolute()
        _readable(environment_file)
    if problems := sight.unseen([Path(sys.executable), Path(bentoml), ROOT]):
        _refuse(problems)
    try:
        made = units(
            SystemdBox(
                (bentoml, "serve", "services.gateway:Gateway", "--host", host, "--port", port),
                python=sys.executable, folder=str(ROOT), name=name, listen=listen, address=address, idle_seconds=idle_seconds,
                environment={"BENTOML_HOME": f"/var/lib/{name}/bentoml"},
                environment_file=str(environment_file) if environment_file else None,
                gpu=find_device(load_settings()) == "cuda" if gpu is None else gpu,
            ),
            by=by,
        )  # fmt: skip
    except BadUnit as error:
        fail(str(error))
    head = f"{MARK} systemd`\n"
    rendering = Rendering({one: head + text for one, text in made.items()}, notes=_unit_notes(name, sorted(made)))
    _told(rendering, output, target="systemd", as_json=False, force=force)


@app.command()
def measure(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, for engine.measured of the environment file.")
    ] = None,
    slo: Annotated[
        float, typer.Option("--slo-ttft-ms", min=1, help="The objective: time to the first token at p95, in milliseconds.")
    ] = 1000,
    prompt_words: Annotated[
        int, typer.Option(min=4, help="Words of a prompt: as many as your callers' and their passages.")
    ] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    bundle: BundleOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Measure the engine's cold start and what saturates it, here: on a machine like the cluster's nodes, with nothing beside it.

    The packed bundle's engine is started alone, as `ekiben engine serve` starts it, and timed until its first token. Then 1, 2,
    4, 8, ... streams at once, up to max_num_seqs, are sent to base model and adapters in turn, no prompt twice.

    The saturation is the largest of these numbers at which the time to the first token at p95 is within the objective, and
    throughput at least 5% above the best of all smaller numbers. Where none is within the objective nothing is written.

    It takes one to three minutes with a small model on two processors. Weights that the system keeps in memory are read sooner
    than from a node's disk; engine.provision_seconds is for that.
    """
    from deploy.measured import NeverWithin
    from services.capacity import Load, capacity
    from services.engine import UnusableEngine
    from services.lock import read_lock
    from services.tuning import DISTURBED

    load(bundle, folders=False)
    if output and not output.parent.is_dir():
        fail(f"{output} cannot be written: there is no folder {output.parent}")
    settings = load_settings()
    settings = settings.model_copy(update={"bundle": bundle or settings.bundle})
    try:
        with reported(), Bar() as bar:
            found = asyncio.run(capacity(settings, read_lock(settings.lock), Load(prompt_words, tokens, slo), bar))
    except (BundleError, UnusableEngine, NeverWithin) as error:
        fail(str(error))
    text = found.model_dump_json(indent=2, exclude_none=True) + "\n"
    if output:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            fail(f"{output} cannot be written: {error.strerror}")
    if as_json:
        sys.stdout.write(text)
    else:
        _show(found)
        if output:
            out.print(f"wrote {output}", markup=False)
    if found.place and found.place.others > DISTURBED:
        err.print(
            f"warning: other programs took {found.place.others:.0%} of the processors meanwhile; measure again without them"
        )


@app.command()
def schema() -> None:
    """Print the JSON schema of the environment file, for editors."""
    from deploy.environment import json_schema

    sys.stdout.write(json_schema())


def _box(bundle: Path | None) -> Box:
    from services.bento import version_here
    from services.deploying import box_of
    from services.lock import read_lock

    loaded = load(bundle, "cuda")
    with reported():
        lock = read_lock((bundle or load_settings().bundle).with_suffix(".lock"))
        return box_of(loaded.bundle, lock, version_here())


def _readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except PermissionError:
        return  # for root alone, as it should be
    except OSError as error:
        fail(f"--environment-file: {path} cannot be read: {error.strerror}")


def _unit_notes(name: str, units: list[str]) -> list[str]:
    models = Path(variable("BENTOML_HOME") or Path.home() / "bentoml", "models")
    wanted = next((one for one in units if one.endswith(".socket")), f"{name}.service")
    return [
        f"the unit's user finds models in its own folder alone: sudo mkdir -p /var/lib/{name}/bentoml && "
        f"sudo cp -r {models} /var/lib/{name}/bentoml/",
        f"sudo cp {' '.join(units)} /etc/systemd/system/ && sudo systemctl daemon-reload && sudo systemctl enable --now {wanted}",
        f"what it says: journalctl -f -u '{name}*'",
    ]


def _show(found: Measured) -> None:
    from deploy.box import concurrency

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("streams", "tokens/s", "TTFT p50 ms", "TTFT p95 ms"):
        table.add_column(head, justify="right", no_wrap=True)
    for step in found.steps:
        mark = " *" if step.streams == found.saturation else "  "
        table.add_row(
            f"{step.streams}{mark}", f"{step.tokens_per_second:.0f}", f"{step.ttft_p50_ms:.0f}", f"{step.ttft_p95_ms:.0f}"
        )
    out.print(table)
    out.print(f"cold start: {found.cold_start_seconds:.1f} s until the first token ({found.healthy_seconds:.1f} s until healthy)")
    out.print(
        f"* saturation: {found.saturation} streams, the first token within {found.slo_ttft_ms:g} ms at p95; "
        f"another engine is started beyond {concurrency(found.saturation or 1)} requests"
    )


def _refuse(lines: list[str]) -> NoReturn:
    for line in lines:
        err.print(line, markup=False, style="red")
    fail(f"{len(lines)} problem{'s' if len(lines) > 1 else ''}; nothing was rendered.")


def _told(made: Rendering, output: Path | None, *, target: str, as_json: bool, force: bool) -> None:
    from deploy.rendering import NotOurs, write

    files = made.files
    for line in made.advice:
        err.print(f"note: {line}", markup=False, style="yellow")
    gone: list[str] = []
    if output:
        try:
            gone = write(files, output, force=force)
        except OSError as error:
            hint = ", or say --force" if isinstance(error, NotOurs) else ""
            fail(f"{output} cannot be written: {error.strerror}{hint}")
    if as_json:
        told = {"target": target, "files": files, "advice": made.advice, "notes": made.notes, "gone": gone}
        sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    elif output:
        out.print(f"wrote {len(files)} file{'' if len(files) == 1 else 's'} to {output}", markup=False)
    else:
        sys.stdout.write("---\n".join(f"# {name}\n{text}" for name, text in files.items()))
    if gone:
        err.print("note: the earlier files had more; on the cluster it stays until it is taken away:", style="yellow")
    for line in [*gone, *([] if as_json else [f"- {one}" for one in made.notes])]:
        err.print(line, markup=False, highlight=False, soft_wrap=True)
