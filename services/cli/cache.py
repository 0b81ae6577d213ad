"""`ekiben cache`: the answer cache: judge it on pairs of questions, and calibrate it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from services.cli.console import Bar, JsonOption, err, fail, out
from services.settings import load_settings

if TYPE_CHECKING:
    from cache.evaluate import Measured

CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", "-c", help="A file of `ekiben cache train` (default: the one that is built in).")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Processes that embed (default: the usable cores).")]
app = typer.Typer(help="The answer cache: judge it on pairs of questions, and calibrate it.", no_args_is_help=True)


@app.command("eval")
def cache_eval(
    file: Annotated[Path, typer.Argument(help="Pairs, a line each: {a, b, label}; .jsonl or .jsonl.gz.")],
    calibration: CalibrationOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Measure how often the answer cache would answer, and how often wrongly.

    FILE holds pairs of questions with a label: 1, true or "same" where one answer serves both, 0, false or "different" where not.
    Each pair is judged by itself; then all first questions are cached, and the others looked up among them. Rates come with exact
    95% intervals. Texts are embedded once: their vectors are kept in EKIBEN_CACHE_DIR.
    """
    from cache.calibration import DEFAULT, BadCalibration, load_calibration
    from cache.evaluate import report
    from rag.embedding import MultilingualE5

    try:
        loaded = load_calibration(calibration or DEFAULT, MultilingualE5.name)
        told = report(_measured(file, workers), loaded)
    except BadCalibration as error:
        fail(str(error))
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _show(told)


@app.command("train")
def cache_train(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pairs as `ekiben cache eval` reads them.")],
    write_to: Annotated[Path | None, typer.Option("--write", help="Write the calibration to this file (.yaml).")] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Calibrate the answer cache on pairs of questions: weights, and thresholds for bounds on wrong answers.

    Prints figures of pairs that the weights have not seen. Files of pairs that are all the same are trained on with their nearest
    others as different ones; one file must have pairs of both kinds. Nothing of the texts is written. Needs scikit-learn.
    """
    from cache.train import train, write
    from rag.embedding import MultilingualE5

    names = [file.name.removesuffix(".gz").removesuffix(".jsonl") for file in files]
    if len(set(names)) < len(names):
        fail("two of the files have the same name, by which figures are told; rename one")
    if write_to is not None and not write_to.parent.is_dir():
        fail(f"--write: there is no folder {write_to.parent}")
    sources = {name: _measured(file, workers) for name, file in zip(names, files, strict=True)}
    try:
        made, figures = train(sources, MultilingualE5.name)
    except ValueError as error:
        fail(str(error))
    except ImportError as error:
        fail(f"{error}; training needs scikit-learn: requirements/dev.txt has it")
    if write_to is not None:
        write(made, sources, write_to)
    if as_json:
        sys.stdout.write(json.dumps({"thresholds": made.thresholds, "unseen": figures}) + "\n")
        return
    for title, of in figures.items():
        out.print(title, markup=False)
        for name, value in of.items():
            out.print(f"  {name}: {_line(value) if isinstance(value, dict) else value}", markup=False)
    if write_to is not None:
        out.print(f"wrote {write_to}", markup=False)


def _measured(file: Path, workers: int | None) -> Measured:
    from cache.judged import BadPairs, read_pairs
    from services.caching import measure_pairs
    from services.engine import usable_cores

    try:
        pairs = read_pairs(file)
    except BadPairs as error:
        fail(str(error))
    with Bar() as bar:
        bar.step("embedding")
        return measure_pairs(pairs, load_settings().cache_dir / "vectors", workers or usable_cores(), bar.tell)


def _show(told: dict[str, Any]) -> None:
    err.print(f"{told['count']} pairs, {told['same']} of them the same; vectors of {told['embedder']}", markup=False)
    for name in ("pairs", "lookups"):
        if name not in told:
            err.print("pairs: all have one label, so only look-ups are judged", markup=False)
            continue
        part = told[name]
        if "auc" in part:
            out.print(f"\npairs: AUC {part['auc']:.4f}, of the cosine alone {part['auc_cosine']:.4f}", markup=False)
        else:
            out.print("\nlookups", markup=False)
        table = Table("threshold", "hits", "wrong", "repeats answered", "wrong of all", "precision", box=None, pad_edge=False)
        for bound, at in part["calibrated"].items():
            table.add_row(f"{bound}: {at['threshold']:.4f}", *_cells(at))
        for way in ("by_likelihood", "by_cosine"):
            for threshold, at in part[way].items():
                table.add_row(f"{way.removeprefix('by_')} {threshold}", *_cells(at))
        out.print(table)
    for share, precision in told["lookups"]["precision_at"].items():
        out.print(
            f"answering {share} of look-ups: precision {precision['likelihood']:.4f}, by cosine alone {precision['cosine']:.4f}; "
            f"where only the pair's own row counts {precision['likelihood_own_row']:.4f} and {precision['cosine_own_row']:.4f}",
            markup=False,
        )


def _cells(at: dict[str, Any]) -> list[str]:
    shares = ("-" if at[n]["share"] is None else f"{at[n]['share']:.3f} ({at[n]['low']:.3f}-{at[n]['high']:.3f})" for n in _RATES)
    return [str(at["hits"]), str(at["wrong"]), *shares]


def _line(at: dict[str, Any]) -> str:
    hits, wrong, repeats, rate, precision = _cells(at)
    return f"threshold {at['threshold']:.4f}: {hits} hits, {wrong} wrong, repeats {repeats}, wrong {rate}, precision {precision}"


_RATES = ("hit_rate", "wrong_rate", "precision")
