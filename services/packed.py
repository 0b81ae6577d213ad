"""What is packed into the Bento, and the version that follows from it. Without BentoML, which takes a second to import."""

from __future__ import annotations

import os  # noqa: TID251  only to walk a folder
from pathlib import Path

import pathspec
import yaml

from services.lock import bento_version, read_lock
from services.settings import ROOT

README = "README.md"  # BentoML takes it for the Bento's own
_IGNORED = {"venv", "__pycache__"}  # by BentoML itself


def packed_files(root: Path) -> list[Path]:
    """Return the files that `bentoml build` packs: those that bentofile.yaml's whitelist names, and .bentoignore does not."""
    build = yaml.safe_load((root / "bentofile.yaml").read_text(encoding="utf-8"))
    spec = pathspec.PathSpec.from_lines("gitignore", build["include"])
    found: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name not in _IGNORED]
        found += [path for name in names if spec.match_file((path := Path(folder, name)).relative_to(root))]
    return sorted(found)


def version_here() -> str:
    """Return the version over every packed file; raises LockError before `ekiben pack`."""
    read_lock(ROOT / "bundle.lock")
    beside = [path for path in (ROOT / "bentofile.yaml", ROOT / README) if path.is_file()]
    return bento_version(ROOT, [*beside, *packed_files(ROOT)])
