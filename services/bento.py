"""The version of the Bento that this folder makes."""

from __future__ import annotations

from pathlib import Path

import pathspec
import yaml

from services.lock import bento_version, read_lock
from services.settings import ROOT


def packed_files(root: Path) -> list[Path]:
    """Return the files that `bentoml build` packs: those that bentofile.yaml's whitelist names."""
    build = yaml.safe_load((root / "bentofile.yaml").read_text(encoding="utf-8"))
    spec = pathspec.PathSpec.from_lines("gitignore", build["include"])
    return [root / name for name in sorted(spec.match_tree_files(root))]


def version_here() -> str:
    """Return the version over every packed file; raises LockError before `ekiben pack`."""
    read_lock(ROOT / "bundle.lock")
    return bento_version(ROOT, [ROOT / "bentofile.yaml", *packed_files(ROOT)])
