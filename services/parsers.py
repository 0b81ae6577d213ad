"""The names of vLLM's tool-call and reasoning parsers, read from its source: importing vLLM takes seconds.

What is known is what the installed vLLM registers, so the names need no upkeep here. Where no vLLM is installed (a gateway in
front of an engine elsewhere) nothing is known, and nothing is refused.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

_REGISTRIES = {
    "tool_call_parser": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning_parser": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}


@cache
def known_parsers(kind: Literal["tool_call_parser", "reasoning_parser"]) -> frozenset[str]:
    """Return the parsers that vLLM knows by name; empty where vLLM is not installed or keeps its register elsewhere."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    folder, register = _REGISTRIES[kind]
    return registered_names(Path(spec.origin).parent / folder / "__init__.py", register)


def registered_names(source: Path, register: str) -> frozenset[str]:
    """Return the keys of the dictionary that is assigned to the name `register` at the top of a Python file."""
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Dict):
            continue
        if any(isinstance(target, ast.Name) and target.id == register for target in statement.targets):
            return frozenset(
                key.value for key in statement.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
    return frozenset()
