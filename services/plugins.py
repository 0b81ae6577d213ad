"""A bundle's own loaders, retrievers and rerankers: modules beside bundle.yaml, or installed ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pathspec
import yaml

from rag.plugins import BadPlugin, load_plugin


def importable(root: Path) -> None:
    """Let the modules beside a bundle be imported, after all others: none of them hides one of ours."""
    if str(root) not in sys.path:
        sys.path.append(str(root))


def check_plugin(setting: str, path: str, root: Path) -> str | None:
    """Import the plug-in that a setting names as `module:name`; return what is wrong with it, or None. It is not called."""
    importable(root)
    try:
        if setting == "retriever":
            from rag.plugged import retriever_factory

            retriever_factory(path)
        else:
            found = load_plugin(setting, path)
            if not callable(found) and not hasattr(found, "lazy_load"):
                return f"{path!r} is a {type(found).__name__}; name a class or a function"
    except BadPlugin as error:
        return str(error)
    # A loader has done its work when the Bento is built.
    return None if setting == "loader" else _left_behind(path.partition(":")[0], root)


def _left_behind(module: str, root: Path) -> str | None:
    """Return what is wrong where a module, or a package it is in, stands beside the bundle and would not be in the Bento."""
    build = root / "bentofile.yaml"
    if not build.is_file():
        return None
    packed = pathspec.PathSpec.from_lines("gitignore", yaml.safe_load(build.read_text(encoding="utf-8"))["include"])
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        file = getattr(sys.modules.get(".".join(parts[:end])), "__file__", None)
        path = Path(file).resolve() if file else None
        if path is None or not path.is_relative_to(root) or "site-packages" in path.parts:
            continue
        name = path.relative_to(root).as_posix()
        if not packed.match_file(name):
            return f"{name} is not among the files that travel in the Bento; add it to `include` of bentofile.yaml"
    return None
