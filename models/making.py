"""Make a base model ready to serve: fetch it, then let `models.quantize_job` convert, quantize and judge it.

The job runs in an environment of its own, because llmcompressor's pins do not go with vLLM's.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.source import fetch

HERE = Path(__file__).parent
JOB = HERE / "quantize_job.py"
TEXTS = HERE / "quality.txt"
OPENINGS = HERE / "calibration.txt"


class ModelError(RuntimeError):
    """A model that could not be made, or is not good enough to be served."""


@dataclass(frozen=True)
class ModelRecipe:
    """All that a model is a function of, and where its tools live."""

    source: str
    sha256: str | None
    recipe: str
    max_nll_increase: float
    root: Path
    requirements: Path
    environment: Path
    calibrated: bool = False
    calibration: Path | None = None
    """A text of the user's own to fit the weights on, where `calibrated`; otherwise the model goes on from our openings."""


def model_version(recipe: ModelRecipe) -> str:
    """Return 16 hex digits over source, recipe, job, texts and the locked versions of the tools."""
    texts = [recipe.calibration or OPENINGS] if recipe.calibrated else []
    inputs: dict[str, object] = {
        "source": recipe.source,
        "sha256": recipe.sha256,
        "recipe": recipe.recipe,
        "max_nll_increase": recipe.max_nll_increase,
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (JOB, TEXTS, recipe.requirements, *texts)],
    }
    if recipe.source.startswith("path:"):
        folder = recipe.root / recipe.source.removeprefix("path:")
        inputs["content"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def make_model(recipe: ModelRecipe, target: Path, advance: Callable[[float, float], None], note: Callable[[str], None]) -> None:
    """Write the model to `target`; raises SourceError or ModelError, and leaves nothing half-made elsewhere."""
    with tempfile.TemporaryDirectory(prefix="ekiben-model-") as scratch:
        note(f"fetching {recipe.source}")
        fetched = fetch(recipe.source, Path(scratch) / "source", root=recipe.root, sha256=recipe.sha256)
        python = _environment(recipe, note)
        command = [
            str(python), str(JOB), "--source", str(fetched), "--target", str(target),
            "--scratch", str(Path(scratch) / "converted"), "--recipe", recipe.recipe, "--texts", str(TEXTS),
            "--max-nll-increase", str(recipe.max_nll_increase),
        ]  # fmt: skip
        if recipe.calibrated:
            command += ["--openings", str(OPENINGS)] if recipe.calibration is None else ["--calibration", str(recipe.calibration)]
        _run(command, advance, note)


def _environment(recipe: ModelRecipe, note: Callable[[str], None]) -> Path:
    from uv import find_uv_bin

    python = recipe.environment / "bin" / "python"
    digest = hashlib.sha256(recipe.requirements.read_bytes()).hexdigest()
    stamp = recipe.environment / ".lock-digest"
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    note("installing the quantization tools (once)")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    create = [find_uv_bin(), "venv", "--quiet", "--clear", "--python", version, str(recipe.environment)]
    install = [find_uv_bin(), "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes"]
    install += ["--requirement", str(recipe.requirements)]
    for command in (create, install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  no shell
        if done.returncode != 0:
            msg = f"cannot install the quantization tools: {done.stderr.strip()}"
            raise ModelError(msg)
    stamp.write_text(digest)
    return python


def _run(command: list[str], advance: Callable[[float, float], None], note: Callable[[str], None]) -> None:
    """Run the job; each line of its output is a JSON object: {"note"}, {"progress": [done, total]} or {"error"}."""
    error = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as job,  # noqa: S603  no shell
    ):
        for line in job.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if "progress" in event:
                advance(*event["progress"])
            elif "note" in event:
                note(event["note"])
            elif "error" in event:
                error = event["error"]
        if job.wait() != 0:
            log.seek(0)
            tail = "\n".join(log.read().splitlines()[-15:])
            raise ModelError(error or f"the job that makes the model failed:\n{tail}")
