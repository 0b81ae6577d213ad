"""What a bundle names as `module:name`: imported and made, with errors that say what to do."""

from __future__ import annotations

import importlib
import operator
from typing import Any


class BadPlugin(ValueError):
    """A plug-in that cannot be had, or does not do what it should; the message says why."""


def load_plugin(setting: str, path: str) -> Any:
    """Return what `module:name` stands for; raises BadPlugin. `setting` is the key of the bundle that names it."""
    module, _, name = path.partition(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (Exception, SystemExit) as error:
        hint = "put its module beside bundle.yaml, or install it, and correct the path"
        raise BadPlugin(f"{setting}: {path!r} cannot be imported: {type(error).__name__}: {error}; {hint}") from error


def make_plugin(setting: str, path: str) -> Any:
    """Return what the callable `module:name` returns when it is called without arguments; raises BadPlugin."""
    found = load_plugin(setting, path)
    if not callable(found):
        raise BadPlugin(f"{setting}: {path!r} is a {type(found).__name__}; name a class or a function without arguments")
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise BadPlugin(f"{setting}: {path!r} failed when it was called: {type(error).__name__}: {error}") from error
