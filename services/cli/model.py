"""`ekiben model`: the base model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from services.cli.console import Bar, BundleOption, JsonOption, err, fail, load, out, reported

if TYPE_CHECKING:
    from services.bundle import LoadedBundle
    from services.tuning import Tuned

app = typer.Typer(help="The base model.", no_args_is_help=True)


@app.command("make")
def model_make(bundle: BundleOption = None) -> None:
    """Fetch, convert, quantize and check the base model, and register it in the model store."""
    loaded = load(bundle)
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
