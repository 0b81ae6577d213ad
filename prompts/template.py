"""Prompt templates: YAML files, rendered by Jinja in a sandbox, versioned by the hash of their content."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

VARIABLES = frozenset({"question", "passages"})
_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
# To compile a template takes longer than all else that is done to a short request.
_compiled = functools.lru_cache(maxsize=256)(_environment.from_string)


class PromptError(ValueError):
    """A prompt file that cannot be used; the message names the file and the remedy."""


class _PromptFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    system: str = Field(min_length=1)
    user: str | None = None


@dataclass(frozen=True)
class PromptVersion:
    """One immutable version of a prompt; `version` is the first 12 hex digits of its content's sha256."""

    name: str
    version: str
    system: str
    user: str | None
    variables: frozenset[str]

    @property
    def label(self) -> str:
        """`name@version`, as answers name it."""
        return f"{self.name}@{self.version}"

    @property
    def needs_passages(self) -> bool:
        """Whether the template has a place for retrieved passages."""
        return "passages" in self.variables

    def render(self, messages: list[dict[str, Any]], *, question: str = "", passages: str = "") -> list[dict[str, Any]]:
        """Return chat messages with the rendered system message in front and the last user message wrapped.

        A caller's own system messages stay, after the prompt's. Values are inserted as data and never rendered again.
        """
        values = {"question": question, "passages": passages}
        rendered = [{"role": "system", "content": _compiled(self.system).render(values).strip()}]
        rendered += messages
        if self.user is not None:
            last = max((i for i, m in enumerate(rendered) if m.get("role") == "user"), default=None)
            if last is not None and isinstance(rendered[last].get("content"), str):
                text = _compiled(self.user).render(values).strip()
                rendered[last] = {**rendered[last], "content": text}
        return rendered


def load_prompt(name: str, path: Path) -> PromptVersion:
    """Read a prompt file; raises PromptError."""
    try:
        content = _PromptFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        variables: set[str] = set()
        for template in (content.system, content.user or ""):
            variables |= meta.find_undeclared_variables(_environment.parse(template))
    except FileNotFoundError as error:
        msg = f"{path} does not exist; make it or correct the path"
        raise PromptError(msg) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TemplateError) as error:
        msg = f"{path} is not a prompt: {error}"
        raise PromptError(msg) from error
    if unknown := variables - VARIABLES:
        msg = f"{path} uses {', '.join(sorted(unknown))}; a prompt may use {', '.join(sorted(VARIABLES))}"
        raise PromptError(msg)
    canonical = json.dumps({"system": content.system, "user": content.user}, ensure_ascii=False, sort_keys=True)
    version = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    return PromptVersion(name, version, content.system, content.user, frozenset(variables))
