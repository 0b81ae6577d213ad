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
from services.cli.console import Bar, BundleOption, DeviceOption, JsonOption, fail, load, out, reported, target_of
from services.recipes import RecipeName, refusal

if TYPE_CHECKING:
    from services.compare import AdapterTask, Figures

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
    from adapters.train import read_rows
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
