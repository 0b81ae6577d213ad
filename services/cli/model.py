"""`ekiben model`: the base model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from pydantic import ValidationError
from rich.table import Table

from services.bundle import LoadedBundle, Quantization, check_calibration
from services.cli.console import Bar, BundleOption, DeviceOption, JsonOption, err, fail, load, out, reported, target_of
from services.recipes import RecipeName, refusal

if TYPE_CHECKING:
    from services.compare import AdapterTask, Figures
    from services.tuning import Tuned

app = typer.Typer(help="The base model.", no_args_is_help=True)
ALL = cast("tuple[RecipeName, ...]", get_args(RecipeName))


@dataclass(frozen=True)
class Refused:
    """A recipe without figures, and why."""

    recipe: RecipeName
    refused: str


@app.command("make")
def model_make(bundle: BundleOption = None, device: DeviceOption = None) -> None:
    """Fetch, convert, quantize and check the base model as the bundle says, and register it in the model store.

    Prints its tag. A model that is in the store already is left alone.
    """
    loaded = load(bundle, device)
    from services.packing import pack_model

    with reported(), Bar() as bar:
        out.print(pack_model(loaded, bar), markup=False)


@app.command("tune")
def model_tune(
    *,
    bundle: BundleOption = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters/--no-adapters", help="With the bundle's LoRA adapters, as it is served.")
    ] = True,
    json_: JsonOption = False,
) -> None:
    """Measure which layout of the engine's processes and threads is fastest on this machine, and remember it.

    Starts the packed model's engine several times, for some minutes in all: let nothing else run. The engine of `bentoml serve`
    then uses the choice; without one it uses a layout that is safe everywhere. The choice holds for this processor, number of
    cores, memory, vLLM and model, and is kept in EKIBEN_CACHE_DIR; it never travels with the Bento.
    """
    loaded = load(bundle)
    from services.engine import find_device, missing_libraries
    from services.layout import this_machine
    from services.lock import read_lock
    from services.settings import load_settings
    from services.tuning import read_tuned, tuning_key

    settings = load_settings()
    if find_device(settings) != "cpu":
        fail("a GPU's engine keeps vLLM's own layout; there is nothing to tune")
    if message := missing_libraries("cpu"):
        fail(message)
    with reported():
        lock = read_lock((bundle or settings.bundle).with_suffix(".lock"))
    machine, with_adapters = this_machine(), lock.adapters if adapters else {}
    key = tuning_key(loaded.bundle, lock.model, machine, lora=bool(with_adapters))
    tuned = None if force else read_tuned(key, settings.cache_dir)
    if tuned is None:
        tuned = asyncio.run(_tune(loaded, lock.model, with_adapters))
    if json_:
        out.print_json(tuned.model_dump_json())
    else:
        _show(tuned)


async def _tune(loaded: LoadedBundle, model: str, adapters: dict[str, str]) -> Tuned:
    from services.engine import UnusableEngine
    from services.engine_process import EngineFailed
    from services.layout import this_machine
    from services.settings import load_settings
    from services.store import stored_path
    from services.tuning import Candidate, Trial, tune, tuning_key, write_tuned

    machine, folder = this_machine(), load_settings().cache_dir
    key = tuning_key(loaded.bundle, model, machine, lora=bool(adapters))
    paths = {name: stored_path(tag) for name, tag in adapters.items()}
    try:
        with Bar() as bar:
            async for event in tune(loaded.bundle, key, machine, model=stored_path(model), adapters=paths):
                if isinstance(event, Candidate):
                    bar.step(f"measuring: {event.name}")
                elif isinstance(event, Trial):
                    bar.note(
                        f"  {event.score:.1f} tokens a second" if event.failure is None else f"  {event.failure.splitlines()[0]}"
                    )
                else:
                    bar.note(f"kept in {write_tuned(event, folder)}")
                    return event
    except (EngineFailed, UnusableEngine) as error:
        fail(str(error))
    raise AssertionError


def _show(tuned: Tuned) -> None:
    from services.tuning import DISTURBED, STREAMS

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layout", no_wrap=True)
    for head in ("start", "MB", *(str(streams) for streams in STREAMS), "others"):
        table.add_column(head, justify="right", no_wrap=True)
    for trial in tuned.trials:
        name = f"{trial.name} *" if trial.name == tuned.chosen else trial.name
        if trial.failure is not None:
            table.add_row(name, "failed")
            continue
        pairs = ((trial.tokens_per_second[streams], trial.ttft_p50_seconds[streams] * 1000) for streams in STREAMS)
        cells = (f"{rate:.0f} / {wait:.0f}" for rate, wait in pairs)
        table.add_row(name, f"{trial.start_seconds:.0f}", f"{trial.memory_bytes / 2**20:.0f}", *cells, f"{trial.others:.0%}")
    out.print(table)
    out.print("joined: engine core and worker in one process; start: seconds; 1, 16, 64 streams: tokens a second / median")
    out.print("milliseconds to the first token; others: the share of the processors that other programs took meanwhile")
    out.print(f"* chosen, measured {tuned.measured_at:%Y-%m-%d} on {tuned.key.cpu}, {tuned.key.cores} cores", markup=False)
    if any(trial.others > DISTURBED for trial in tuned.trials):
        err.print("warning: other programs were busy meanwhile; measure again with --force when they are not", markup=False)


@app.command("quantize")
def model_quantize(
    recipe: Annotated[RecipeName, typer.Option("--recipe", help="How its weights are made smaller.")],
    bundle: BundleOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text to fit a w4a16 recipe on: .txt, or .jsonl with a text in each row (default: the bundle's, or its own)."
        ),
    ] = None,
    max_nll_increase: Annotated[
        float | None, typer.Option(min=0, help="How much worse it may get, in nats a token (default: the recipe's).")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Make the bundle's base model by another recipe, and register it in the model store. bundle.lock stays as it is.

    Prints its tag. To serve it, write the recipe into bundle.yaml (model.quantization.recipe) and run `ekiben pack`: the same
    inputs give the same tag, so nothing is made twice. `ekiben model compare` measures the recipes side by side.
    """
    loaded = load(bundle, device)
    given = {"calibration": calibration and calibration.resolve(), "max_nll_increase": max_nll_increase}
    try:
        kept = loaded.bundle.model.quantization.by(recipe).model_dump()
        quantization = Quantization.model_validate(kept | {key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        fail("; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors()))
    if calibration is not None and (message := check_calibration(calibration)):
        fail(message)
    if message := refusal(recipe, target_of(device)):
        fail(message)
    from services.packing import pack_model

    with reported(), Bar() as bar:
        out.print(pack_model(loaded.quantized(quantization), bar), markup=False)


@app.command("compare")
def model_compare(
    bundle: BundleOption = None,
    recipes: Annotated[str, typer.Option(help="Which recipes, with commas between them.")] = ",".join(ALL),
    adapter: Annotated[str | None, typer.Option(help="Serve this adapter too, and measure it on --data.")] = None,
    data: Annotated[Path | None, typer.Option(help='JSONL rows of {"text", "label"} for --adapter.')] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's form of a flag
) -> None:
    """Make the base model by several recipes and measure each as vLLM serves it on this machine, in one table.

    Columns: size of the weights, memory of the engine after the load (1 GiB of KV cache included), tokens a second and median
    time to the first token at 1 and 64 streams, mean negative log-likelihood (nats a token) of models/quality.txt, and with
    --adapter the share of rows that the adapter names right on that base. Takes a minute or two a recipe, and longer where a
    model has to be made first. Let nothing else run beside it.
    """
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    if unknown := [name for name in names if name not in ALL]:
        fail(f"no recipe named {', '.join(unknown)}; there is: {', '.join(ALL)}")
    if (adapter is None) != (data is None):
        fail("--adapter and --data go together: the adapter, and the rows to measure it on")
    loaded = load(bundle)
    from adapters.rows import read_rows
    from services.compare import NotComparable, adapter_task

    task = None
    if adapter is not None and data is not None:
        try:
            task = adapter_task(loaded, adapter, read_rows(data))
        except (NotComparable, ValueError, OSError) as error:
            fail(str(error))
    with reported(), Bar() as bar:
        rows = [_compare(loaded, cast("RecipeName", name), task, bar) for name in names]
    if as_json:
        out.print_json(json.dumps([asdict(row) for row in rows]))
        return
    _print(rows)


def _compare(loaded: LoadedBundle, recipe: RecipeName, task: AdapterTask | None, bar: Bar) -> Figures | Refused:
    from models.making import ModelError
    from services.compare import figures
    from services.engine_process import EngineFailed
    from services.packing import pack_model
    from services.store import stored_path

    target = target_of(None)
    if message := refusal(recipe, target):
        return Refused(recipe, message)
    variant = loaded.quantized(loaded.bundle.model.quantization.by(recipe))
    try:
        tag = pack_model(variant, bar)
        return asyncio.run(figures(variant, tag, stored_path(tag), device=target.device, task=task, progress=bar))
    except (ModelError, EngineFailed) as error:
        return Refused(recipe, str(error))


def _print(rows: list[Figures | Refused]) -> None:
    from services.compare import STREAMS, Figures

    columns = ["recipe", "files MB", "memory MB", "start s"]
    columns += [f"tok/s {streams}" for streams in STREAMS] + [f"TTFT ms {streams}" for streams in STREAMS]
    table = Table(*columns, "NLL", "adapter", box=None, pad_edge=False)
    for row in rows:
        if not isinstance(row, Figures):
            continue
        speed = [row.speed[streams] for streams in STREAMS]
        table.add_row(
            row.recipe, f"{row.file_bytes / 1e6:.0f}", f"{row.memory_bytes / 1e6:.0f}", f"{row.start_seconds:.0f}",
            *(f"{item.tokens_per_second:.0f}" for item in speed), *(f"{item.ttft_p50_seconds * 1000:.0f}" for item in speed),
            f"{row.nll:.3f}", "-" if row.accuracy is None else f"{row.accuracy:.3f}",
        )  # fmt: skip
    out.print(table)
    for row in rows:
        if isinstance(row, Refused):
            out.print(f"{row.recipe}: {row.refused}", markup=False)
