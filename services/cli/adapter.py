"""`ekiben adapter`: LoRA adapters: train, measure and check them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.cli import versions
from services.cli.console import Bar, BundleOption, JsonOption, fail, load, out, reported
from services.settings import load_settings

if TYPE_CHECKING:
    from adapters.evaluate import Evaluation
    from services.bundle import LoadedBundle

app = typer.Typer(help="LoRA adapters: train, measure and check them.", no_args_is_help=True)
Rows = Annotated[Path, typer.Argument(help='JSONL file, one {"text": ..., "label": ...} a line.', metavar="FILE.jsonl")]


app.add_typer(versions.app)


@app.command("check")
def adapter_check(
    folder: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    engine: Annotated[bool, typer.Option("--engine/--no-engine", help="Also let it say a few words in a real engine.")] = True,  # noqa: FBT002
    data: Annotated[Path | None, typer.Option(help='Also measure it on JSONL rows of {"text", "label"}.')] = None,
    min_accuracy: Annotated[float, typer.Option(min=0, max=1, help="With --data: the least share of right answers.")] = 0.0,
    bundle: BundleOption = None,
) -> None:
    """Check that an adapter may be served on the bundle's base model; `pack`, `add` and a hot load make the same check.

    Files, digest, base, rank and settings, every tensor's name, shape, dtype and values, tokens and chat template; then a few
    words from a real engine. Layers and tokens are compared with the packed base, so run `ekiben pack` first.
    """
    import asyncio

    from adapters.evaluate import evaluate
    from adapters.gate import BaseModel, check_adapter
    from adapters.rows import read_rows
    from services.evaluation import open_engine
    from services.lock import LockError, read_lock
    from services.packing import adapter_base, try_adapters

    loaded = load(bundle)
    content = loaded.bundle
    with reported(), Bar() as bar:
        path = (bundle or load_settings().bundle).with_suffix(".lock")
        # What needs no base is told first, also where nothing was packed.
        manifest = check_adapter(folder, base=BaseModel(content.model.source), max_lora_rank=content.engine.max_lora_rank)
        try:
            model = read_lock(path).model
            check_adapter(folder, base=adapter_base(loaded, model), max_lora_rank=content.engine.max_lora_rank)
        except LockError as error:
            bar.note(f"not compared with the base, nor tried in an engine: {error}")
        else:
            if engine:
                bar.step(f"trying {manifest.name} in an engine")
                if problem := asyncio.run(try_adapters(loaded, model, {manifest.name: folder.resolve()})):
                    bar.note(f"not tried in an engine: {problem}")
        if data is not None:
            rows = read_rows(data)

            async def measure() -> float:
                bar.step("starting an engine")
                async with open_engine(loaded, manifest.name, folder.resolve(), None, path) as client:
                    report = await evaluate(
                        client, (manifest.name, content.model.name), manifest=manifest, rows=rows, shots=0, limit=None, seed=7,
                        advance=lambda text, n, total: bar.tell(f"asking {text}: {n:.0f}/{total:.0f}", n, total),
                    )  # fmt: skip
                return report.report()["accuracy"]

            accuracy = asyncio.run(measure())
            bar.note(f"accuracy {accuracy:.4f} on {len(rows)} rows of {data.name}")
            if accuracy < min_accuracy:
                fail(f"{folder}: accuracy {accuracy:.4f} is under --min-accuracy {min_accuracy}; train it again, or ask for less")
    out.print(f"{manifest.name}: fits {content.model.source}", markup=False)


@app.command("train")
def adapter_train(  # noqa: PLR0913  a recipe has many settings
    data: Rows,
    name: Annotated[str, typer.Option(help="The adapter's name, in its manifest and in bundle.yaml.")],
    dataset: Annotated[str, typer.Option(help="What the rows are, for manifest and card: name, origin, licence, attribution.")],
    prompt: Annotated[str, typer.Option(help="Prompt of bundle.yaml whose system text the rows get; its route must use it too.")],
    folder: Annotated[Path | None, typer.Option("--out", help="The adapter's folder (default: adapters/NAME).")] = None,
    licence: Annotated[str, typer.Option("--license", help="The adapter's own licence, for its card.")] = "apache-2.0",
    eval_data: Annotated[Path | None, typer.Option(help="JSONL rows for the held-out loss, in the place of --held-out.")] = None,
    held_out: Annotated[float, typer.Option(min=0, max=0.5, help="Share of each label's rows that is not trained on.")] = 0.04,
    rank: Annotated[int, typer.Option(min=1, help="Rank; at most engine.max_lora_rank.")] = 16,
    alpha: Annotated[
        int, typer.Option(min=1, help="The update is scaled by alpha/rank; with --rslora by alpha/sqrt(rank).")
    ] = 32,
    rslora: Annotated[bool, typer.Option("--rslora", help="Rank-stabilized LoRA.")] = False,  # noqa: FBT002  typer's way
    dora: Annotated[bool, typer.Option("--dora", help="Refused: vLLM cannot serve DoRA.")] = False,  # noqa: FBT002
    dropout: Annotated[float, typer.Option(min=0, max=0.9, help="LoRA dropout; zero is faster.")] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 2e-3,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop when this many checks (three an epoch) bring no better held-out loss.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 7,
    compute: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Number format (default: what this processor multiplies faster)."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the unquantized base (default: made from bundle.yaml, kept in the model store)."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where a checkpoint stands.")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in the folder.")] = False,  # noqa: FBT002
    bundle: BundleOption = None,
) -> None:
    """Train a LoRA adapter that answers each text with its label.

    Writes weights, manifest, learning curve and model card. Killed and called again, it goes on from its last checkpoint and
    gives the same weights. `ekiben adapter eval` measures the result.
    """
    loaded = load(bundle, folders=False)  # what is trained here may be named there already
    if dora:
        fail("vLLM cannot serve DoRA adapters: train without --dora; --rslora is a LoRA that it serves")
    system = _system_prompt(loaded, prompt)
    with reported():
        from adapters.recipe import Recipe
        from adapters.train import require_tools

        require_tools()
        from services.training import Assignment, train_adapter

        recipe = Recipe(
            rank=rank, alpha=alpha, rslora=rslora, dropout=dropout, epochs=epochs, batch=batch, learning_rate=learning_rate,
            seed=seed, patience=patience,
        )  # fmt: skip
        work = Assignment(
            name=name, data=data, dataset=dataset, licence=licence, system_prompt=system,
            out=folder or loaded.root / "adapters" / name, held_out=eval_data or held_out, recipe=recipe, compute=compute,
            base=base, fresh=fresh, overwrite=overwrite,
        )  # fmt: skip
        with Bar() as bar:
            manifest = train_adapter(loaded, work, bar)
    out.print(f"{work.out}: {manifest.training['minutes']} minutes on {manifest.training['cores']} cores", markup=False)


def _system_prompt(loaded: LoadedBundle, prompt: str) -> str:
    if prompt not in loaded.prompts:
        fail(f"no prompt named {prompt!r} in the bundle; there is: {', '.join(loaded.prompts)}")
    version = loaded.prompts[prompt]
    if version.variables or version.user is not None:
        fail(f"prompt {prompt!r} is more than a fixed system text; an adapter is trained with `system` alone, without variables")
    return str(version.render([])[0]["content"])


@app.command("eval")
def adapter_eval(  # noqa: PLR0913  it has as many options
    name: Annotated[str, typer.Argument(help="Name of the adapter in bundle.yaml.")],
    data: Rows,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
    url: Annotated[str | None, typer.Option(help="An engine that runs already, such as http://127.0.0.1:8421.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Rows of the file that the base model is shown.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask this many rows, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the shots, and the rows under --limit.")] = 7,
    record: Annotated[bool, typer.Option("--record", help="Write the result into manifest and card.")] = False,  # noqa: FBT002
    bundle: BundleOption = None,
) -> None:
    """Measure an adapter on rows, beside the base model with examples in its prompt.

    Both can answer with the adapter's labels only, greedily. Without --url an engine is started on the packed base model, and
    ended. Run `ekiben pack` first. A row whose label the adapter does not know counts as wrong.
    """
    import asyncio

    from adapters.card import record_evaluation
    from adapters.evaluate import evaluate
    from adapters.gate import check_adapter
    from adapters.rows import read_rows
    from services.evaluation import open_engine
    from services.lock import read_lock
    from services.packing import adapter_base

    loaded = load(bundle)
    content = loaded.bundle
    if name not in content.adapters:
        fail(f"no adapter named {name!r} in the bundle; there is: {', '.join(content.adapters) or 'none'}")
    folder, path = loaded.root / content.adapters[name].path, (bundle or load_settings().bundle).with_suffix(".lock")

    async def measure(bar: Bar) -> Evaluation:
        bar.step(f"asking {url}" if url else "starting an engine")
        async with open_engine(loaded, name, folder.resolve(), url, path) as engine:
            return await evaluate(
                engine, (name, content.model.name), manifest=manifest, rows=rows, shots=shots, limit=limit, seed=seed,
                advance=lambda text, n, total: bar.tell(f"asking {text}: {n:.0f}/{total:.0f}", n, total),
            )  # fmt: skip

    with reported():
        rows = read_rows(data)
        base = adapter_base(loaded, read_lock(path).model)
        manifest = check_adapter(folder, base=base, max_lora_rank=content.engine.max_lora_rank)
        with Bar() as bar:
            report = asyncio.run(measure(bar)).report()
    if record:
        record_evaluation(folder, {**report, "data": data.name})
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    for label, count in report["unknown_labels"].items():
        out.print(f"{count} rows of label {label!r}, which the adapter does not know, count as wrong", markup=False)
    out.print(
        f"{report['n']} rows, {report['labels']} labels: {name} {report['accuracy']:.4f}, "
        f"the base with {report['shots']} examples {report['base_accuracy']:.4f}",
        markup=False,
    )
